"""Sampling of completions from one prefill, and how far it is from what is scored."""
