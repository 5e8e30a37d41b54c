"""What people have: files, buckets and data sets in many formats, one record at a time."""
