"""Downloads a data set, or makes the offline sample. Imports `base` and `cli`."""
