"""The calls of OpenAI's API, of vLLM's tokenizer routes beside it: a byte is a token."""
