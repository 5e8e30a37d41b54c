"""``python -m tools.shard_builder``."""

import sys

from tools.shard_builder.cli import main

if __name__ == "__main__":
    sys.exit(main())
