"""Data at rest: samples, tar shards with their index, the manifest, a cache of whole shards.

docs/architecture.md has the map of all rooms.
"""
