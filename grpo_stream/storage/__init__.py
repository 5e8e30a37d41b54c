"""Where bytes are kept: local folders, object stores, retries, files that appear whole."""
