"""Write runs to TensorBoard event files."""
