"""Streaming, large-scale GRPO for visual grounding.

The floors, bottom to top (an import only points down; the test command keeps it so)::

    4  grpo_stream.train     the only folder that imports trl, transformers, deepspeed
    4  grpo_stream.report    pictures and HTML; no torch
    3  grpo_stream.stream    data in motion: plan, cursor, prompt stream, loader
    3  grpo_stream.grounding the task: prompts, answers, rewards, frames; no torch
    2  grpo_stream.shards    data at rest: samples, tar shards, manifest, stores; no torch
    1  grpo_stream.stream.config, boxes, images
    0  grpo_stream.errors

Importing this package imports nothing else: take names from the floor that you need.
"""

__version__ = "0.1.0"
