"""Many ranks, simulated."""
