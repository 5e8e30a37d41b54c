"""Two nodes for all tests of this folder, which is left out unless it is asked for.

``make test-cluster`` or ``pytest tests/cluster -m cluster``: they need root and take minutes.
"""

import pytest

from tests.cluster.machines import obstacle
from tests.cluster.nodes import PYTHON, ROOT, Cluster, environment

NUM_IMAGES = 64


def pytest_ignore_collect(collection_path, config):
    return True if config.option.markexpr != "cluster" else None


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """Two nodes, shards on the S3 server, and a tiny policy in the shared folder."""
    if reason := obstacle("pdsh", "ssh", "sshd", "ssh-keygen"):
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("cluster")
    raw, tiny = folder / "raw", folder / "tiny"
    with Cluster(folder, 2) as cluster:
        for words in (
            ["-m", "launch.make_shapes", "--out", raw, "--num-images", NUM_IMAGES, "--seed", 3],
            [
                *("-m", "tools.shard_builder", "build", raw / "records.json", "--quiet"),
                *("--images-root", raw, "--out", cluster.shards, "--samples-per-shard", 8),
            ],
            ["launch/tiny_policy.py", "--json", raw / "records.json", "--out", tiny],
        ):
            cluster.nodes[1].call([PYTHON, *words], cwd=ROOT, env=environment())
        yield cluster


@pytest.fixture(scope="session")
def uninterrupted(cluster):
    """What two ranks on one host log, with nothing going wrong."""
    run = cluster.run("one_host", hosts=["--num_gpus", 2], max_steps=cluster.num_steps)
    assert run.wait() == 0, run.log()
    assert len(run.losses()) == cluster.num_steps
    return run.losses()


@pytest.fixture(autouse=True)
def whole(request):
    """Whatever a test did, the next one finds both nodes up, joined and idle."""
    yield
    if "cluster" in request.fixturenames:
        request.getfixturevalue("cluster").repair()
