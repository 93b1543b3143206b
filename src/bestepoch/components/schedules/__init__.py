"""The arithmetic of epochs, learning rates and early stopping."""
