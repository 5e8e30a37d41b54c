"""``python -m tools.shard_builder`` from a checkout; the installed package is ``shard_builder``."""

import sys
from pathlib import Path

_TOOLS = str(Path(__file__).resolve().parent.parent)
if __package__ == "tools.shard_builder" and _TOOLS not in sys.path:
    sys.path.insert(0, _TOOLS)

from shard_builder.cli import main  # noqa: E402 - found on the path above

if __name__ == "__main__":
    sys.exit(main())
