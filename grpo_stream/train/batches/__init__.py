"""From samples to micro-batches: collating, grouping, cutting, reading in step with other ranks."""
