"""Damaged bytes of every kind that is read, and what may come out: one error, soon."""
