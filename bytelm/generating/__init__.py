"""What is made of a byte LM: greedy continuations, samples, scores."""
