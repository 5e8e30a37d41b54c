"""A build's output: who holds it, what is placed there and what is kept of it."""
