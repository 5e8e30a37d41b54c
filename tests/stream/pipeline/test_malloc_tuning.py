import subprocess
import sys

import pytest

from grpo_stream.stream.pipeline.malloc_tuning import keep_freed_memory

# Page faults of making and freeing an array of 3 MB, a hundred times.
_COUNT = """
import resource, sys
import numpy as np
from grpo_stream.stream.pipeline.malloc_tuning import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(3):
    np.ones(3_000_000, np.uint8)
    np.ones(1_000_000, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    held = [np.ones(3_000_000, np.uint8) for _ in range(4)]
    del held
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def num_faults(word):
    command = [sys.executable, "-c", _COUNT, word]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts glibc's page faults")
def test_freed_memory_is_used_again():
    if not keep_freed_memory():
        pytest.skip("malloc is set by the environment, or not glibc's")
    assert num_faults("keep") < num_faults("leave") / 5


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_what_the_user_has_set_stays(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert not keep_freed_memory()
