"""A small raw data set, and builds that end before they should."""

import json
import os
import signal
import traceback
from pathlib import Path

from grpo_stream.shards.manifest import Manifest
from grpo_stream.shards.tar import iter_samples
from grpo_stream.storage.store import LocalStore
from shard_builder.build.build import BuildSettings, build
from shard_builder.build.chunk_plan import ShardLimits
from tests.shards.support import image_bytes


def write_raw(folder: Path, num_records=23, **change):
    """Records with rejects, warnings, repeats and differing sizes among them."""
    images = folder / "img"
    images.mkdir(parents=True)
    rows: list[object] = []
    for number in range(num_records):
        name = f"img/pic {number % 17}.png"
        if number < 17:
            (folder / name).write_bytes(image_bytes((40 + number, 30)))
        solution = [3, 3, 3, 3] if number % 7 == 5 else [1, 2, 20, 200 if number % 9 == 4 else 30]
        row = {"image": name, "prompt": f"Click {number % 17}", "solution": solution}
        rows.append(row | change)
    rows[3] = "no object"
    (folder / "records.json").write_text(json.dumps(rows))
    return folder


def make_settings(raw: Path, out, **change):
    limits = ShardLimits(max_samples=4)
    settings = {"limits": limits} | change
    return BuildSettings(
        inputs=(str(raw / "records.json"),), images_root=str(raw), out=str(out), **settings
    )


def files_of(folder: Path):
    """Every file below ``folder``, hidden ones too."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def samples_of(folder: Path):
    """All samples of a data set, in order."""
    found = []
    for shard in Manifest.load(LocalStore(folder)).shards:
        with (folder / shard.name).open("rb") as file:
            found += list(iter_samples(file, shard.name))
    return found


def lines_of(path: Path):
    """The values of a file of JSON Lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def build_and_die(settings, at_step):
    """Builds in a child process that is killed before its n-th durable step.

    Returns:
        Whether it was killed; False when it ended by itself.
    """
    child = os.fork()
    if child == 0:
        try:
            _die_at(at_step)
            build(settings)
        except BaseException:  # noqa: BLE001 - a child must never return into pytest
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def _die_at(at_step):
    left = [at_step]

    def dying(function):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    os.fsync = dying(os.fsync)
    for name in ("replace", "unlink", "mkdir", "rmdir"):
        setattr(Path, name, dying(getattr(Path, name)))
