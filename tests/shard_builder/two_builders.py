"""Builders as processes of their own, against one place."""

import json
import os
import subprocess
import sys
from pathlib import Path


def command_of(raw: Path, out: str, *more: str) -> list[str]:
    words = ["build", str(raw / "records.json"), "--images-root", str(raw), "--out", out]
    return [sys.executable, "-m", "tools.shard_builder", *words, "--workers", "1", *more]


def start(command: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(command, env=os.environ, stderr=subprocess.PIPE, text=True)


def end(process: "subprocess.Popen[str]") -> tuple[int, str]:
    _, words = process.communicate(timeout=120)
    return process.returncode, words


def foreign_lease(host: str = "elsewhere", beat: int = 0) -> bytes:
    return json.dumps({"id": "theirs", "host": host, "pid": 1, "beat": beat}).encode()
