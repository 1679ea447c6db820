"""Tables, atomic files, words and vectors: what every other room reads and writes."""
