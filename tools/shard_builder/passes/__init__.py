"""Looking at every shard of a data set: here, in parts on many machines, or on a Ray cluster."""
