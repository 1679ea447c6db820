"""Curation on Ray Data: from a catalogue and queries to triplets."""
