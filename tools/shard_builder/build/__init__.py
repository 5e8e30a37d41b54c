"""The build: chunks of records, worker processes, shards in order, the manifest last."""
