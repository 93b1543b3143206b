"""What a command line shares: launch, process set-up and the terminal. Imports `base` alone."""
