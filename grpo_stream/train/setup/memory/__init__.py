"""Sizes of a model and what a run needs of a GPU's memory."""
