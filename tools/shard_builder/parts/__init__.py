"""A build in parts: planned once, built by any number of machines, finished by one."""
