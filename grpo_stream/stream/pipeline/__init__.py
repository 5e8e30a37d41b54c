"""How samples get from a store to the loader ahead of time: fetching, decoding, and what waits."""
