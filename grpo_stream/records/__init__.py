"""Anybody's raw records, judged: from a file's bytes to a sample, or the cause of its rejection.

docs/architecture.md has the map of all rooms.
"""
