"""Who does a build's chunks: processes of this machine or a Ray cluster."""
