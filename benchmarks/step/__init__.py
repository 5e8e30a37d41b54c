"""The training step beside trl's own."""
