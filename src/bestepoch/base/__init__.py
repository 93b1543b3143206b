"""Paths, safe files, errors, signals and configuration. Imports nothing else of the package."""
