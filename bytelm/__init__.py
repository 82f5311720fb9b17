"""bytelm: byte-level language models out of token-level ones."""
