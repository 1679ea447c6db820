"""Evaluation of systems on the same queries."""
