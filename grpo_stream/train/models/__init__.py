"""Policies and their processors: loading, patches on the device, tiny ones for tests."""
