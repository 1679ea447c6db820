"""Retrieval over a catalogue: BM25, embedding models with their index, and how a setting names them."""
