"""Data in motion: an exact order computed from integers, read ahead of the step."""
