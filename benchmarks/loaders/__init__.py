"""The prompt stream and what it is made of."""
