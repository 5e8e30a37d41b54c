"""The object store in a process of its own: what is timed is the client, not the server.

Tells what it has done whenever it is sent a line, and ends with its input; so it ends with the
process that started it, too.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from benchmarks.servers.object_server import ObjectServer, client_environment

_BUCKET = "bench"


@dataclass(frozen=True)
class Usage:
    """What a server has done since it started."""

    cpu_seconds: float
    num_requests: int
    num_sent_bytes: int
    num_received_bytes: int
    """Of bodies, as the sent ones."""

    def since(self, before: "Usage") -> "Usage":
        """What was done after ``before``."""
        return Usage(
            self.cpu_seconds - before.cpu_seconds,
            self.num_requests - before.num_requests,
            self.num_sent_bytes - before.num_sent_bytes,
            self.num_received_bytes - before.num_received_bytes,
        )


class Server:
    """A server in a process of its own."""

    url = f"s3://{_BUCKET}"

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.environment: dict[str, str] = client_environment(self._said())

    def usage(self) -> Usage:
        """Asks the server; this is no request."""
        if self._process.stdin is not None:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        return Usage(**json.loads(self._said()))

    def _said(self) -> str:
        return "" if self._process.stdout is None else self._process.stdout.readline().strip()


@contextmanager
def serve(delay_ms: float, folder: str = "") -> Iterator[Server]:
    """Runs a server; what is uploaded to it in parts leaves its size alone.

    Args:
        delay_ms: Time in milliseconds between the end of each request and its answer.
        folder: Whose files the bucket holds at first; empty for none.
    """
    command = [sys.executable, "-m", __name__, "--delay-ms", str(delay_ms), "--folder", folder]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        yield Server(process)
        # Leaving closes its input, which ends it.


def main() -> None:
    """Prints its URL and serves until its input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default="")
    parser.add_argument("--delay-ms", type=float, default=30)
    args = parser.parse_args()
    with ObjectServer(delay_seconds=args.delay_ms / 1000, drops_parts=True) as server:
        if args.folder:
            server.add_folder(args.folder, _BUCKET)
        print(server.url, flush=True)
        for _ in sys.stdin:
            sent, received = server.num_sent_bytes, server.num_received_bytes
            usage = Usage(time.process_time(), len(server.requests), sent, received)
            print(json.dumps(asdict(usage)), flush=True)


if __name__ == "__main__":
    main()
