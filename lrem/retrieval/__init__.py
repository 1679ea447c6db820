"""Retrievers over a fixed set of items: BM25, Faiss, and an embedding model."""
