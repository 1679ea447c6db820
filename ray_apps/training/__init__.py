"""Both training stages on Ray Train and DeepSpeed."""
