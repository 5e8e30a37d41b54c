"""Formats of one row a target: fields that hold image, question and numbers."""
