"""What a catalogue and its traffic need: a table and a formula."""
