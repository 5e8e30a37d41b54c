"""The order of samples, computed from integers: permutation, plans, blend, cursor.

docs/architecture.md has the map of all rooms.
"""
