"""Log runs, evaluations, models, sweeps and saved views to MLflow."""
