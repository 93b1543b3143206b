"""Splits a data set into training, validation and test. Imports `fetching`, `components` and below."""
