"""Many nodes: the preflight, process groups, stopping, leaving together."""
