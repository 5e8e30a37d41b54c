"""Data at rest: samples, tar shards with their index, the manifest, and stores to keep them in."""
