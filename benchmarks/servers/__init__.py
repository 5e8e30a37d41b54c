"""An object store on loopback, for benchmarks and tests.

``object_server`` in a thread, ``server_process`` in a process of its own; ``http_messages`` and
``s3_xml`` are what they say.
"""
