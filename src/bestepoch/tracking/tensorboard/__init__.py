"""Runs in TensorBoard's event files."""
