"""How a run is watched: phases of a step, metrics, rollout sheets, watchdog, heartbeats."""
