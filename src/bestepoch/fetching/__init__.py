"""Download a data set or write the offline sample. Imports `base` and `cli`."""
