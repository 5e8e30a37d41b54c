"""Runs ``launch/train.py`` again and again in forked ranks, and kills one where it is told to.

Started by :mod:`benchmarks.kill.kill_resume`: a job as JSON on each line of standard input, its end
on a line of standard output. Libraries are imported once, so a start costs a second, not ten.

Each rank counts *moments*: what it does to files of the output folder (opening, renaming, removing)
and calls of the reward, but not what it does by the clock. A job may name the moment after which a
rank kills itself with SIGKILL.
"""

import contextlib
import gc
import importlib.util
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

_REWARD = "benchmarks.kill.kill_run.reward"
_FILE_EVENTS = frozenset({"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"})
_BY_THE_CLOCK = ("heartbeat", ".run.lease")  # in another run they come between other moments
_ROOT = Path(__file__).resolve().parents[2]


def noting_reward(
    completions: list[Any], key: list[str], trainer_state: Any, **_: Any
) -> list[float]:
    """A reward of the text alone; notes whose completions were scored at which global step."""
    sys.audit(_REWARD)
    note = {"global_step": trainer_state.global_step, "keys": key}
    with (Path(os.environ["KILL_NOTES"]) / f"samples_{os.environ['RANK']}.jsonl").open("a") as file:
        file.write(json.dumps(note) + "\n")
    return [sum(map(ord, str(text))) % 5 / 4 for text in completions]


class Moments:
    """Counts moments, and kills this process some time after one of them.

    Args:
        folder: The output folder.
        notes: Where to write what the process was about to do.
        kill: ``moment`` (from 1), of those of files in the folder ``within`` if that is given, and
            ``seconds`` to wait then; None: only count.

    Attributes:
        all: What the process was about to do at each.
    """

    def __init__(self, folder: Path, notes: Path, kill: dict[str, Any] | None) -> None:
        self.all: list[str] = []
        self._num_counted = 0
        self._prefix = f"{folder}{os.sep}"
        self._notes = notes
        self._kill = kill
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        path = str(args[0]) if args else ""
        is_file = event in _FILE_EVENTS and path.startswith(self._prefix)
        if event == "open" and is_file and args[2] & (os.O_WRONLY | os.O_RDWR) == 0:
            return  # only read
        if not is_file and event != _REWARD:
            return
        path = path.removeprefix(self._prefix)
        if path.startswith(_BY_THE_CLOCK):
            return
        what = f"{event} {path}".strip()
        self.all.append(what)
        if self._kill is None or not path.startswith(self._kill.get("within", "")):
            return
        self._num_counted += 1
        if self._num_counted == self._kill["moment"]:
            if self._kill["seconds"]:
                what += f", {1000 * self._kill['seconds']:.0f} ms later"
            (self._notes / "killed.txt").write_text(what)
            if not self._kill["seconds"]:
                os.kill(os.getpid(), signal.SIGKILL)
            timer = threading.Timer(self._kill["seconds"], os.kill, (os.getpid(), signal.SIGKILL))
            timer.daemon = True
            timer.start()


def main() -> None:
    """Serves jobs until standard input ends."""
    train = _load_train()
    gc.freeze()  # each collection of a rank would look through all that the imports have made
    for line in sys.stdin:
        job = json.loads(line)
        pids = [_start(train, job, rank) for rank in range(job["num_ranks"])]
        print(json.dumps({"codes": _wait(pids)}), flush=True)


def _load_train() -> ModuleType:
    spec = importlib.util.spec_from_file_location("launch_train", _ROOT / "launch/train.py")
    if spec is None or spec.loader is None:
        raise RuntimeError("launch/train.py is not there")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    importlib.import_module("deepspeed")
    return module


def _start(train: ModuleType, job: dict[str, Any], rank: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = _run_rank(train, job, rank)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run_rank(train: ModuleType, job: dict[str, Any], rank: int) -> int:
    notes = Path(job["notes"])
    log = os.open(notes / f"log_{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(job["num_ranks"]),
        "LOCAL_WORLD_SIZE": str(job["num_ranks"]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(job["port"]),
        "KILL_NOTES": str(notes),
    }
    kill = job["kill"] if job["kill"] and job["kill"]["rank"] == rank else None
    moments = Moments(Path(job["out"]), notes, kill)
    code: int = train.main(job["argv"])
    (notes / f"moments_{rank}.txt").write_text("\n".join(moments.all))
    return code


def _wait(pids: list[int]) -> list[int]:
    """Exit codes, negative for a signal; when one rank fails the others are killed, too."""
    codes: dict[int, int] = {}
    while len(codes) < len(pids):
        for pid in set(pids) - set(codes):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
        if any(codes.values()):
            for pid in set(pids) - set(codes):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


if __name__ == "__main__":
    # trl finds the reward under the module's own name; there must be one, not two.
    importlib.import_module("benchmarks.kill.kill_run").main()
