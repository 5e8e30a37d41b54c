"""What the wheel holds, and that the shard builder runs with numpy, Pillow and tqdm alone."""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.shards.support import image_bytes

ROOT = Path(__file__).parents[1]
PACKED = ("pyproject.toml", "README.md", "LICENSE", "grpo_stream", "tools")
DATA_HALF = ("numpy", "pillow", "tqdm")


@pytest.fixture
def raw(tmp_path):
    (tmp_path / "a.png").write_bytes(image_bytes((60, 40)))
    rows = [{"image": "a.png", "prompt": "Click OK", "solution": [1, 2, 13, 12]}]
    (tmp_path / "records.json").write_text(json.dumps(rows))
    return tmp_path


def run(*words, cwd, **env):
    """Runs a command without this process's paths; gives what it printed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=clean | env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_and_verify(*command, raw, cwd):
    out = raw / "out"
    words = ("build", raw / "records.json", "--images-root", raw, "--out", out)
    printed = run(*command, *words, cwd=cwd)
    assert "1 samples of 1 records" in printed
    assert "sound: 1 samples in 1 shards" in run(*command, "verify", out, cwd=cwd)


def copy_dependencies(site: Path):
    """Copies what the data half needs from this environment, and nothing else."""
    for name in DATA_HALF:
        found = distribution(name)
        for file in found.files or ():
            source = Path(str(found.locate_file(file)))
            if ".." in file.parts or file.suffix == ".pyc":
                continue
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, site / file)


# Twelve seconds on two cores: setuptools packs, an environment is made, the builder runs twice.
@pytest.mark.slow(reason="a wheel is built and installed into a new environment")
def test_the_wheel_in_an_empty_environment(raw, tmp_path):
    copy = tmp_path / "source"  # so that no build/ or egg-info is left in the tree
    for name in PACKED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            copy.mkdir(exist_ok=True)
            shutil.copyfile(source, copy / name)
    options = ("--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", tmp_path)
    run(sys.executable, "-m", "pip", "wheel", *options, copy, cwd=tmp_path, PIP_NO_INDEX="1")
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    packages = {name.partition("/")[0] for name in names}
    assert {name for name in packages if not name.endswith(".dist-info")} == {
        "grpo_stream",
        "shard_builder",
    }
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    (site,) = home.glob("lib/python*/site-packages")
    copy_dependencies(site)
    target = ("--python", home / "bin" / "python", "install", "--no-deps", "--quiet", wheel)
    run(sys.executable, "-m", "pip", *target, cwd=tmp_path, PIP_NO_INDEX="1")
    build_and_verify(home / "bin" / "shard-builder", raw=raw, cwd=tmp_path)


def test_the_builder_runs_from_a_checkout(raw, tmp_path):
    command = (sys.executable, "-S", "-c", NOT_INSTALLED)
    build_and_verify(*command, raw=raw, cwd=ROOT)
    build_and_verify(sys.executable, "-m", "tools.shard_builder", raw=raw, cwd=ROOT)


NOT_INSTALLED = f"""
import runpy, sys
sys.path += [{str(ROOT)!r}, {str(Path(str(distribution("numpy").locate_file(""))))!r}]
sys.argv[0] = "shard_builder"
runpy.run_module("tools.shard_builder", run_name="__main__", alter_sys=True)
"""
"""``python -m tools.shard_builder`` without the path file that an editable install leaves."""
