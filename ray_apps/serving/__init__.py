"""The search service on Ray Serve."""
