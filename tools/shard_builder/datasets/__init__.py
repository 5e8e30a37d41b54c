"""What one does with data sets that are built: verify, index, stats, show, head, merge, split."""
