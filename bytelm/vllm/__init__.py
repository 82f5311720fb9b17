"""The engine: one vLLM ``AsyncLLM`` and the plugins that run inside its processes.

Nothing is imported here: vLLM's processes load single modules of this package by name.
"""
