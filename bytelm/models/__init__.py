"""What is asked: token LMs, byte LMs, and their distributions."""
