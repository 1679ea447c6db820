"""Metrics, overrides of the reasoning, and the report. Knows runs and qrels; not how a run was made."""
