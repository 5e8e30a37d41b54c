"""Measurements: each prints numbers, none of them is a test."""
