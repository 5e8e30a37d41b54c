"""Data at rest: samples, tar shards with their index, the manifest, a cache of whole shards.

* ``sample``: key, images and JSON of one sample, and the rules that they keep,
* ``tar``: a shard written and read; ``tar_headers``, ``sample_runs``: its members, and which of
  them are one sample,
* ``index``: where each sample of a shard is,
* ``manifest``, ``shard_table``: the shards of a data set, as columns,
* ``cache``, ``cache_fetcher``, ``cache_folder``: whole shards on a local disk, what brings them,
  and the folder that the processes of a machine share,
* ``fast_json``, ``fast_rows``: the fastest parser installed; rows of a table as named tuples.

docs/architecture.md has the map of all rooms.
"""
