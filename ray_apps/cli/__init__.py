"""The command line `lrem`."""
