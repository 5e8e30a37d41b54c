"""Supervised fine-tuning: its settings, its batches and rows, and what it is measured by."""
