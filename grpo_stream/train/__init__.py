"""Training: the only folder that imports trl, transformers and deepspeed."""
