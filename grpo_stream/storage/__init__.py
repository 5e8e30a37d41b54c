"""Where bytes are kept: local folders, object stores, retries, files that appear whole.

docs/architecture.md has the map of all rooms.
"""
