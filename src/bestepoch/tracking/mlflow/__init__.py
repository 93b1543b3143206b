"""Runs, evaluations, models, sweeps and views in MLflow."""
