"""What is waited for, and plans of calls: made from ``_async`` by ``client/unasync.py``."""
