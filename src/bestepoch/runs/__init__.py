"""A run's folder: identity, journal, checkpoints and timing. Imports `components` and below."""
