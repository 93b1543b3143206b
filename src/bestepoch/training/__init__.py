"""The training loop and all that it needs. Imports `runs` and below; never `tracking`."""
