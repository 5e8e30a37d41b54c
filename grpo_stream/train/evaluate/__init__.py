"""Evaluation of a policy: its settings, its answers, the figures and the report."""
