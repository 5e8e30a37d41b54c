"""Formats of conversations, and what their answers look like."""
