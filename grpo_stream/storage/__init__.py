"""Where bytes are kept: local folders, object stores, retries, files that appear whole.

* ``store``: the interface of all of them, and the one for a URL,
* ``local_store``, ``object_store``: a folder; a bucket or web folder,
* ``retrying_store``, ``retry_policy``: either of them with retries; how long to wait,
* ``error_causes``: what went wrong, in a word, and whether waiting may help,
* ``blobs``: names, ranges and errors, which are alike for all stores,
* ``atomic_files``, ``hashed_file``: files that appear whole; one that is hashed as it is written.

docs/architecture.md has the map of all rooms.
"""
