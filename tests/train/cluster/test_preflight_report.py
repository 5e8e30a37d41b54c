import pytest

from grpo_stream.train.cluster.node_checks import Folder, NodeReport, StoreProbe
from grpo_stream.train.cluster.preflight_report import Needs, RankReport, find_problems, nodes_of
from grpo_stream.train.cluster.preflight_table import NodeRow, make_table

GB = 10**9
NODE = NodeReport(
    [StoreProbe("s3://b/set", "d" * 64, 0.02, 150e6)],
    Folder("out", 900 * GB),
    Folder("/nvme", 500 * GB),
    200 * GB,
)


def node(**changes):
    return NodeReport(**{**vars(NODE), **changes})


def ranks(*nodes, per_node=2, host=None):
    """Reports of ``per_node`` ranks on each of ``nodes``, each with a GPU of 80 GB."""
    return [
        RankReport(
            number * per_node + local_rank,
            local_rank,
            host or f"host{number}",
            {},
            80 * GB,
            one if local_rank == 0 else None,
        )
        for number, one in enumerate(nodes)
        for local_rank in range(per_node)
    ]


def problems(reports, *, clocks=None, needs=None, of_first=None):
    found = find_problems(reports, clocks or {}, needs or Needs(), of_first or {})
    return [str(problem) for problem in found]


def test_nothing_is_wrong():
    needs = Needs(gpu_per_rank=80 * GB, host_per_rank=100 * GB, output_per_rank=450 * GB)
    assert problems(ranks(NODE, NODE), clocks={2: -299.0}, needs=needs) == []


@pytest.mark.parametrize(
    ("changes", "needs", "words"),
    [
        (
            {"stores": [StoreProbe("s3://b/set", error="unavailable: no")]},
            {},
            "store s3://b/set: found unavailable: no; needed: readable from every node",
        ),
        (
            {"output": Folder("out", GB, "/x cannot be written")},
            {},
            "output_dir out: found /x cannot be written; needed: a folder that can be written",
        ),
        ({"cache": Folder("/nvme", 0, "is no folder")}, {}, "cache_dir /nvme: found is no folder"),
        (
            {"output": Folder("out", 3 * GB)},
            {"output_per_rank": 2 * GB},
            "disk of output_dir out: found 3.0 GB free; needed: at least 4.0 GB",
        ),
        (
            {"host_bytes": 5 * GB},
            {"host_per_rank": 3 * GB},
            "host memory: found 5.0 GB free; needed: at least 6.0 GB",
        ),
    ],
)
def test_a_nodes_problem_is_named(changes, needs, words):
    (found,) = problems(ranks(NODE, node(**changes)), needs=Needs(**needs))
    assert found.startswith(f"node host1 (rank 2): {words}")


def test_a_ranks_problems_are_named():
    reports = ranks(NODE, NODE)
    other = RankReport(**{**vars(reports[3]), "differences": {"learning_rate": 2e-6}})
    reports[3] = RankReport.from_json(other.to_json().encode())
    (found,) = problems(reports, of_first={"learning_rate": 1e-6})
    assert found == (
        "node host1 (rank 3): learning_rate: found 2e-06; needed: 1e-06, as rank 0 has it"
    )
    assert len(problems(ranks(NODE), needs=Needs(gpu_per_rank=81 * GB))) == 2


def test_clocks():
    (found,) = problems(ranks(NODE, NODE), clocks={0: 0.0, 2: 400.0})
    assert found.startswith("node host1 (rank 2): clock: found +400 s to rank 0's; needed: within")


def test_what_nobody_can_tell_is_no_problem():
    needs = Needs(gpu_per_rank=GB, host_per_rank=GB)
    (report,) = ranks(node(host_bytes=None), per_node=1)
    assert problems([RankReport(**{**vars(report), "gpu_bytes": None})], needs=needs) == []


def test_a_report_comes_back_whole():
    for report in ranks(NODE, node(cache=None)):
        assert RankReport.from_json(report.to_json().encode()) == report


def test_nodes_of_one_name_are_told_apart():
    found = nodes_of(ranks(NODE, NODE, host="same"))
    assert [[report.rank for report in node.ranks] for node in found] == [[0, 1], [2, 3]]


def test_the_table():
    failing = node(stores=[StoreProbe("s3://b/set", error="no")], cache=None)
    rows = [
        NodeRow.of_node("host0", [0, 1], NODE, [80 * GB, 79 * GB], 0.0),
        NodeRow.of_node("host1", [2], failing, [], None),
    ]
    title, heads, first, second = make_table(rows, 3).splitlines()
    assert title == "Preflight: 3 ranks on 2 nodes; free memory and disks"
    assert heads.split()[:2] == ["node", "ranks"]
    assert first.split() == ["host0", "0-1", "150", "20", "200", "79", "900", "500", "0"]
    assert second.split() == ["host1", "2", "fails", "-", "200", "-", "900", "-", "-"]
    assert len({len(line) for line in (heads, first, second)}) == 1
