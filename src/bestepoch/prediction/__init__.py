"""Classifies picture files with a finished model. Imports `tracking`, `runs` and below."""
