"""A real Ray cluster, three nodes on loopback: ``make test-ray``. Left out where Ray is missing."""

import importlib.util
import os

import pytest

# It would ask the network for the address of this machine, and send statistics.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

collect_ignore_glob = [] if importlib.util.find_spec("ray") else ["test_*.py"]

_NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def cluster():
    """Three nodes, each with processes, a scheduler and an object store of its own."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**_NODE, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(**_NODE)
    cluster.wait_for_nodes(timeout=120)
    yield cluster
    cluster.shutdown()
