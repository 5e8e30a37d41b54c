"""Other loaders, read in the same way."""
