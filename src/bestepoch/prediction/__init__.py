"""Classifies picture files with a trained model. Imports `tracking`, `runs` and below."""
