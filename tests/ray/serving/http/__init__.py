"""The HTTP contract of one running service; a package, so that its modules share that service."""
