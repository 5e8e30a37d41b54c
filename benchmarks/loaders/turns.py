"""Loaders that take turns: steady ratios on a machine whose speed swings from second to second.

Every loader is opened once, in a process of its own, and warmed up; then each of them works for a
moment, in turn, again and again. Until its next turn a loader is stopped, with all its workers
(SIGSTOP), so that nothing is made ahead on another's time.
"""

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager

from benchmarks.loaders.job import Job, Measured, command_of, environment_of


class Contestant(AbstractContextManager["Contestant"]):
    """A loader in a process of its own, opened, warmed up and stopped.

    Args:
        job: What it does; it can take ``num_turns`` turns.
        environment: Further variables of its environment.

    Raises:
        RuntimeError: it failed; the end of what it said is in the message.
    """

    def __init__(self, job: Job, environment: Mapping[str, str] | None = None) -> None:
        self.turns_left = job.num_turns
        self._name = job.contestant
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            command_of(job),
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=environment_of(environment),
            start_new_session=True,  # a group of its own: its workers are stopped with it
        )
        try:
            self._wait_until_stopped()
        except BaseException:
            self.close()
            raise

    def take_turn(self) -> Measured:
        """Lets it work once more.

        Raises:
            RuntimeError: it failed; the end of what it said is in the message.
        """
        self.turns_left -= 1
        os.killpg(self._process.pid, signal.SIGCONT)
        self._wait_until_stopped()
        assert self._process.stdout is not None  # noqa: S101 - a pipe
        return Measured(**json.loads(self._process.stdout.readline())["measured"])

    def close(self) -> None:
        """Ends it, once; one that has had all its turns closes what it holds."""
        if self._said.closed:
            return
        if self._process.poll() is None:
            is_done = self.turns_left == 0
            os.killpg(self._process.pid, signal.SIGCONT if is_done else signal.SIGKILL)
        self._process.communicate()
        self._said.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait_until_stopped(self) -> None:
        # Its end, as opposed to its stop, is left for Popen to find.
        pid = self._process.pid
        found = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if found is None or found.si_code != os.CLD_STOPPED:
            self._said.seek(0)
            raise RuntimeError(f"{self._name}: {self._said.read()[-2000:]}")
        os.waitid(os.P_PID, pid, os.WSTOPPED)


def wait_for_turn() -> None:
    """Stops this process and its group until the next turn; see :class:`Contestant`."""
    os.killpg(0, signal.SIGSTOP)
