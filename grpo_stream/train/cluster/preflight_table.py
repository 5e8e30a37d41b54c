"""What a preflight found, a line for each node."""

from collections.abc import Sequence
from typing import NamedTuple

from grpo_stream.train.cluster.node_checks import NodeReport, slowest

_HEADS = (
    "node",
    "ranks",
    "store MB/s",
    "store ms",
    "memory GB",
    "GPU GB",
    "output GB",
    "cache GB",
    "clock ms",
)


class NodeRow(NamedTuple):
    """Cells of one line; memory and disks are what is free."""

    node: str
    ranks: str
    rate: str
    latency: str
    host: str
    gpu: str
    output: str
    cache: str
    clock: str

    @classmethod
    def of_node(
        cls,
        name: str,
        ranks: Sequence[int],
        found: NodeReport,
        gpu_bytes: Sequence[int],
        clock_seconds: float | None,
    ) -> "NodeRow":
        """The line of a node; of several data sets and GPUs, the worst figure of each."""
        rate, latency = slowest(found.stores)
        failed = any(probe.error is not None for probe in found.stores)
        return cls(
            name,
            f"{ranks[0]}-{ranks[-1]}" if len(ranks) > 1 else str(ranks[0]),
            "fails" if failed else _scaled(rate, 1e6),
            _scaled(latency, 1e-3),
            _scaled(found.host_bytes, 1e9),
            _scaled(min(gpu_bytes, default=None), 1e9),
            _scaled(found.output.free_bytes, 1e9),
            _scaled(None if found.cache is None else found.cache.free_bytes, 1e9),
            _scaled(clock_seconds, 1e-3),
        )


def make_table(rows: Sequence[NodeRow], num_ranks: int) -> str:
    """Lines of text: what is free, and how the store answers, on every node."""
    cells = [_HEADS, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_HEADS))]
    lines = [
        "  " + "  ".join(f"{c:>{w}}" if n else f"{c:<{w}}" for n, (c, w) in enumerate(row))
        for row in ([*zip(line, widths, strict=True)] for line in cells)
    ]
    nodes = "1 node" if len(rows) == 1 else f"{len(rows)} nodes"
    return "\n".join([f"Preflight: {num_ranks} ranks on {nodes}; free memory and disks", *lines])


def _scaled(value: float | None, unit: float) -> str:
    return "-" if value is None else f"{value / unit:,.4g}"
