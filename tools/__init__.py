"""Programs around the library: the shard builder, benchmarks, generated data."""
