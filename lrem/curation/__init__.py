"""Curation: import, bootstrap, difficulty, teacher, rules, judge and split, as functions of tables and rankings."""
