"""What decides the numbers and is read by training and evaluation alike. Imports `base` and `cli`."""
