"""Compute iterations, learning rates and early stopping."""
