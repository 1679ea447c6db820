"""Evaluation of several systems on the same queries."""
