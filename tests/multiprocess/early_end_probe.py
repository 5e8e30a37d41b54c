"""launch/train.py, which a signal reaches at a given place; started by test_early_end.py.

Arguments: the place, the signal's number, and the flags of the script. The process sends the signal
to itself when it has been there for half a second.
"""

import contextlib
import os
import sys
import threading
import time
from pathlib import Path

from grpo_stream.train.cluster import launched_run, launched_training, preflight, process_group
from grpo_stream.train.cluster.early_end import end_process
from tests.launch.support import load_script

train = load_script("train")

PLACES = {
    "lock": (process_group, "wait_for_compilers"),
    "rendezvous": (process_group, "joining_ranks"),
    "preflight": (preflight, "_collect"),
    "silent": (launched_run, "run_preflight"),
    "loading": (train, "PersonalizedGRPOTrainer"),
    "swallowed": (launched_training, "load_processor"),
}


def main(place, number, *flags):
    owner, name = PLACES[place]
    inner = getattr(owner, name)

    def reached(*args, **kwargs):
        threading.Thread(target=send, args=(int(number),), daemon=True).start()
        if place == "silent":
            time.sleep(60)
        while place == "swallowed":  # code that lets no exception of a handler through
            with contextlib.suppress(BaseException):
                time.sleep(60)
            sys.stdout.write("swallowed\n")
            sys.stdout.flush()
        made = inner(*args, **kwargs)
        if place == "loading":  # a tiny policy may be there before the signal is
            time.sleep(60)
        return made

    setattr(owner, name, reached)
    if missing := int(os.environ.get("NUM_MISSING_RANKS", "0")):
        os.environ["WORLD_SIZE"] = str(int(os.environ["WORLD_SIZE"]) + missing)
    if place == "lock":
        lock = Path(os.environ["TORCH_EXTENSIONS_DIR"], "deepspeed_shm_comm/lock")
        lock.parent.mkdir()
        lock.touch()
    return train.main(list(flags))


def send(number):
    time.sleep(0.5)
    os.kill(os.getpid(), number)


if __name__ == "__main__":
    end_process(main(*sys.argv[1:]))  # as the script does
