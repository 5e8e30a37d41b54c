"""Data sets made of data sets without copying a shard."""
