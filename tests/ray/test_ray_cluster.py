"""A build on a Ray cluster gives the bytes of a build on one machine, whatever becomes of nodes."""

import threading
import time
from dataclasses import replace

import pytest
import ray

from grpo_stream.errors import ConfigError
from grpo_stream.storage.store import LocalStore
from shard_builder.build.build import TooManyRejectsError, build
from shard_builder.build.output.kept_results import result_names
from shard_builder.build.progress import Progress
from shard_builder.build.workers import ray_crew
from shard_builder.build.workers.ray_crew import RayCrew
from tests.shard_builder.support import files_of, make_settings, write_raw

pytestmark = pytest.mark.slow(reason="starts the nodes of a cluster, half a minute")


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_raw(tmp_path_factory.mktemp("raw") / "raw", 800)


def test_a_node_is_killed_in_the_middle(cluster, raw, tmp_path):
    settings = make_settings(raw, tmp_path / "out", executor="ray", ray_address=cluster.address)
    victim = cluster.worker_nodes.copy().pop()
    seen = []

    def kill():
        store = LocalStore(tmp_path / "out")
        deadline = time.monotonic() + 120
        while len(result_names(store)) < 5 and time.monotonic() < deadline:
            time.sleep(0.005)
        cluster.remove_node(victim, allow_graceful=False)
        seen.append(len(result_names(store)))

    thread = threading.Thread(target=kill)
    thread.start()
    told = [Progress("none", None)]
    result = build(settings, told.append)
    thread.join(timeout=120)
    assert 5 <= seen[0] < 200, "the node was to be killed in the middle"
    assert (told[-2].num_records, told[-2].num_rejects) == (800, sum(result.rejects.values()))
    build(make_settings(raw, tmp_path / "here"))
    assert files_of(tmp_path / "out") == files_of(tmp_path / "here")
    assert not ray.is_initialized()  # a cluster of others is left as it was found


def test_what_a_node_says_is_what_the_user_reads(cluster, raw, tmp_path, monkeypatch):
    settings = make_settings(raw, tmp_path / "out", executor="ray", ray_address="auto")
    facts_of = RayCrew._facts
    for change, words in (
        ({"settings_sha256": "0"}, r"--out=.*does not see what this machine has begun there"),
        ({"versions": {"grpo_stream": "9.9"}}, r"has grpo_stream \S+, this machine 9\.9"),
    ):
        monkeypatch.setattr(
            RayCrew, "_facts", lambda self, to=change: replace(facts_of(self), **to)
        )
        with pytest.raises(ConfigError, match=words):
            build(settings)
    assert not list((tmp_path / "out").glob("shard-*"))
    monkeypatch.undo()
    with pytest.raises(TooManyRejectsError, match="at most 3 are allowed"):
        build(replace(settings, max_rejects=3))


def test_a_task_that_is_lost_is_sent_anew(cluster, raw, tmp_path, monkeypatch):
    settings = make_settings(raw, tmp_path / "out", executor="ray", ray_address="auto")
    result_of = ray_crew.result_of_task
    lost: list[bool] = []

    def lose_the_first(ref, *, is_last_try):
        if len(lost) < 5:
            ray.get(ref)
            lost.append(is_last_try)
            return None
        return result_of(ref, is_last_try=is_last_try)

    monkeypatch.setattr(ray_crew, "result_of_task", lose_the_first)
    build(settings)
    assert lost == [False] * 5
    build(make_settings(raw, tmp_path / "here"))
    assert files_of(tmp_path / "out") == files_of(tmp_path / "here")
