"""What ranks tell of themselves and their nodes, and why a run cannot start with it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from grpo_stream.errors import GrpoStreamError
from grpo_stream.train.cluster.node_checks import Folder, NodeReport, StoreProbe
from grpo_stream.train.cluster.same_settings import Differences, as_text

MAX_SKEW_SECONDS = 300.0
"""Clocks further apart are an error: S3 refuses requests that are signed 15 minutes off."""


class PreflightError(GrpoStreamError):
    """The run cannot work; the same on every rank, so it is enough that rank 0 tells."""


@dataclass(frozen=True)
class Needs:
    """Least free bytes; 0 where nobody can tell."""

    gpu_per_rank: int = 0
    host_per_rank: int = 0
    output_per_rank: int = 0
    """Of the disk of ``output_dir``: a rank's part of one checkpoint."""


@dataclass(frozen=True)
class RankReport:
    """What one rank tells rank 0."""

    rank: int
    local_rank: int
    host: str
    differences: Differences = field(default_factory=dict)
    gpu_bytes: int | None = None
    """Free memory of its GPU."""
    node: NodeReport | None = None
    """Of ranks whose local rank is 0."""

    @classmethod
    def from_json(cls, text: bytes) -> "RankReport":
        """Reads what :meth:`to_json` wrote."""
        raw = json.loads(text)
        node = raw.pop("node")
        if node is not None:
            node["stores"] = [StoreProbe(**probe) for probe in node["stores"]]
            node["output"] = Folder(**node["output"])
            node["cache"] = None if node["cache"] is None else Folder(**node["cache"])
            node = NodeReport(**node)
        return cls(**raw, node=node)

    def to_json(self) -> str:
        """As JSON; values of settings that it lacks become their text."""
        return json.dumps(asdict(self), default=str)


class Node(NamedTuple):
    """What ranks of one node said."""

    first: RankReport
    found: NodeReport
    ranks: list[RankReport]


@dataclass(frozen=True)
class Problem:
    """Why a run cannot start, in four answers."""

    where: str
    what: str
    found: str
    needed: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}: found {self.found}; needed: {self.needed}"


def find_problems(
    reports: Sequence[RankReport],
    clocks: Mapping[int, float],
    needs: Needs,
    of_first: Mapping[str, Any],
) -> list[Problem]:
    """All that keeps the run from starting.

    Args:
        reports: One a rank, in order of rank; those of silent ranks are missing.
        clocks: Rank -> seconds that its clock is ahead of rank 0's.
        needs: Least free memory and disk.
        of_first: Settings of rank 0.
    """
    problems = []
    for report in reports:
        where = _where(report)
        for name, value in report.differences.items():
            of_rank_0 = f"{as_text(of_first.get(name))}, as rank 0 has it"
            problems.append(Problem(where, name, as_text(value), of_rank_0))
        problems += _too_little(where, "GPU memory", report.gpu_bytes, needs.gpu_per_rank)
    for node in nodes_of(reports):
        problems += _node_problems(node, needs)
        skew = clocks.get(node.first.rank, 0.0)
        if abs(skew) > MAX_SKEW_SECONDS:
            where = _where(node.first)
            needed = f"within {MAX_SKEW_SECONDS:.0f} s: set the clock, for example by chrony"
            problems.append(Problem(where, "clock", f"{skew:+.0f} s to rank 0's", needed))
    return problems


def nodes_of(reports: Sequence[RankReport]) -> list[Node]:
    """The nodes, in order of their first ranks."""
    nodes: list[Node] = []
    for report in reports:
        if report.node is not None:
            nodes.append(Node(report, report.node, []))
        # Two containers of one machine may have one name; their ranks follow one another.
        own = [node for node in nodes if node.first.host == report.host]
        if own:
            own[-1].ranks.append(report)
    return nodes


def _where(report: RankReport) -> str:
    return f"node {report.host} (rank {report.rank})"


def _node_problems(node: Node, needs: Needs) -> list[Problem]:
    where, found, num_ranks = _where(node.first), node.found, len(node.ranks)
    problems = [
        Problem(where, f"store {probe.url}", probe.error, "readable from every node")
        for probe in found.stores
        if probe.error is not None
    ]
    for name, folder in (("output_dir", found.output), ("cache_dir", found.cache)):
        if folder is not None and folder.error is not None:
            needed = "a folder that can be written"
            problems.append(Problem(where, f"{name} {folder.path}", folder.error, needed))
    disk = f"disk of output_dir {found.output.path}"
    problems += _too_little(where, disk, found.output.free_bytes, needs.output_per_rank * num_ranks)
    memory = needs.host_per_rank * num_ranks
    return problems + _too_little(where, "host memory", found.host_bytes, memory)


def _too_little(where: str, what: str, free: int | None, needed: int) -> list[Problem]:
    if free is None or free >= needed:
        return []
    return [Problem(where, what, f"{free / 1e9:.1f} GB free", f"at least {needed / 1e9:.1f} GB")]
