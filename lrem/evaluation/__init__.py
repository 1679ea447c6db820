"""Evaluation of runs: metrics, significance, overrides of the reasoning, TREC files and the report."""
