"""LREM, the science: formats, model, losses, rewards, index, metrics. Knows nothing of Ray, vLLM or DeepSpeed."""

__version__ = "0.1.0"
