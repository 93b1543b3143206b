"""Networks, inference and the model file."""
