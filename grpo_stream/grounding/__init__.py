"""The task: prompts, answers, rewards and the frames that they speak in. No torch, no trl.

* :mod:`~grpo_stream.grounding.prompts`: instruction and image size to chat messages,
* :mod:`~grpo_stream.grounding.answers`: a completion's text to numbers, or why there are none,
* :mod:`~grpo_stream.grounding.frames`: which frame a model answers in, and the way back,
* :mod:`~grpo_stream.grounding.cases`: a completion and its truth in one frame, with its measures,
* :mod:`~grpo_stream.grounding.rewards`: reward functions with trl's signature,
* :mod:`~grpo_stream.grounding.reward_calls`: rewards by name, with parameters, with named errors.

docs/architecture.md has the map of all rooms.
"""
