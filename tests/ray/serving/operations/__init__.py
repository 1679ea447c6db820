"""One service in operation: writes, keys, limits, failures, replacement; a package, so that its modules share it."""
