"""Data in motion: samples fetched, decoded and resized ahead of the step, in a computed order.

docs/architecture.md has the map of all rooms.
"""
