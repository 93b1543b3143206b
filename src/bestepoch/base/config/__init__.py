"""The typed configuration: its schema, its composition by Hydra and its messages. Imports `base` alone."""
