"""Multiruns, their tables, studies and presets. Imports everything below the commands."""
