"""Brings journals to MLflow and TensorBoard. Imports `runs` and below; never `training`."""
