"""The shard builder."""
