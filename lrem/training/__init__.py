"""Losses, rewards and the gradient steps of both stages, as plain PyTorch."""
