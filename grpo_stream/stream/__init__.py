"""Data in motion: samples fetched, decoded and resized ahead of the step, in a computed order.

* ``config``, ``world``: the settings; who this process is,
* ``sources``, ``record_source``: shards and raw records behind one interface; ``open_shards`` and
  ``open_records`` open what a user names,
* ``prompt_stream``: which samples this rank reads in a batch, and what stands in for a bad one,
* ``loader``: batches made ahead of time, by ``fetcher`` (with ``look_ahead``, ``pending_samples``),
  ``priority_pool`` or ``decode_processes``,
* ``ordered_reader``: every sample once in the set's own order, for evaluation,
* ``malloc_tuning``: memory kept for the next image.

docs/architecture.md has the map of all rooms.
"""
