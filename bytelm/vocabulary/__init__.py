"""Vocabularies: ids and their bytes, canonical tokenizations, and the trie of a vocabulary."""
