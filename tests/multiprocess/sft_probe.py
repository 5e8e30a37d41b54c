"""launch/sft.py on a rank that may kill itself in the midst of a checkpoint: run by ranks.py.

``KILL_AT`` is the global step whose checkpoint is never finished; 0: none.
"""

import os
import signal
import sys

from grpo_stream.train.cluster.early_end import end_process
from grpo_stream.train.run_state import RunState
from tests.launch.support import load_script


def main():
    kill_at = f"checkpoint-{os.environ.get('KILL_AT', '0')}"
    write = RunState.write

    def write_or_die(self, folder, *args, **kwargs):
        if folder.name == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, folder, *args, **kwargs)

    RunState.write = write_or_die  # type: ignore[method-assign]
    return load_script("sft").main(sys.argv[1:])


if __name__ == "__main__":
    end_process(main())  # as the script does
