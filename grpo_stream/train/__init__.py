"""Training: the only folder that imports trl, transformers and deepspeed.

docs/architecture.md has the map of all rooms.
"""
