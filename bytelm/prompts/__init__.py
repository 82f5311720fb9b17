"""What comes before: contexts of text and special tokens, chats."""
