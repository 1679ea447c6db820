"""Ray itself: connecting to a cluster, resources and placement, progress, metrics, status."""
