"""Raw JSON records and images to shards with a manifest. Needs numpy, Pillow and tqdm, no torch.

docs/architecture.md has the map of all rooms.
"""
