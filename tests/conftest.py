"""What holds for all tests."""

import os

from hypothesis import settings

# Speed is never asserted: a shared machine may stall any example. CI repeats the same examples, so
# that a failure there is the change's own; runs by hand look for new ones.
settings.register_profile("grpo_stream", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("grpo_stream")
