"""Batch LLM client: OpenAI-compatible HTTP, or vLLM on Ray Data."""
