"""Deliver run journals to MLflow and TensorBoard. Imports `runs` and the packages below it; never `training`."""
