"""Offline embedding, index snapshots and hard negatives."""
