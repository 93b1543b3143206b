"""The typed configuration: its schema, its composition by Hydra and its error messages. Imports only `base`."""
