"""From settings to a run: arguments, their checks, data, DeepSpeed, memory."""
