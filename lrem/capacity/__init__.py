"""Capacity planning: a table of measured constants and one formula per quantity."""
