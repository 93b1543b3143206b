"""Data, models and schedules: the code that decides a run's numbers, shared by training and evaluation.

Imports `base` and `cli`.
"""
