"""Ray itself: joining a cluster, placement, progress, metrics, status."""
