"""Loads the scripts of launch/, which is a folder of scripts and no package."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def load_script(name):
    """``launch/<name>.py`` as a module; nothing in it runs at import."""
    spec = importlib.util.spec_from_file_location(f"launch_{name}", ROOT / f"launch/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
