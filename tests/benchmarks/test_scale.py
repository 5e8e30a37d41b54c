import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.scale.scale_run import Cluster, plan_reads, release_calls, simulate, traffic
from benchmarks.scale.scale_store import StoreModel, StoreTimes
from grpo_stream.storage.retry_policy import RetryRules
from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.loader import PromptLoader
from grpo_stream.stream.pipeline.look_ahead import LookAhead
from tests.stream.support import make_stream, write_numbered_set

SMALL = Cluster(num_ranks=16, ranks_per_node=4, num_shards=200, samples_per_shard=20, num_sampled=8)
PERFECT = StoreModel(spread=0.0, tail_share=0.0, refused_share=0, reset_share=0, silent_share=0)
CONFIG = StreamConfig(num_lanes=64)


@pytest.fixture(scope="module")
def numbered_set(tmp_path_factory):
    return write_numbered_set(tmp_path_factory.mktemp("set"), 96, per_shard=8)


def outcome(cluster=SMALL, model=PERFECT, config=CONFIG, num_batches=20):
    reads = plan_reads(cluster, cluster.plan(4), num_batches)
    return simulate(cluster, reads, config, StoreTimes(model, RetryRules(), 0))


def draw(model, size, start=0.0):
    times = StoreTimes(model, RetryRules(), 0)
    return times, times.draw(
        np.full(size, start), np.full(size, 6e6), np.full(size, 6e7), np.ones(size)
    )


def test_a_perfect_store_takes_latency_and_transfer():
    times, seconds = draw(PERFECT, 5)
    assert seconds == pytest.approx(0.03 + 0.1)
    assert times.num_tries == 5


def test_failures_wait_as_the_retry_rules_have_it():
    times, seconds = draw(replace(PERFECT, refused_share=0.5), 2000)
    again = len(times.retry_times)
    assert again == pytest.approx(2000, rel=0.1)  # 1/2 + 1/4 + ...
    assert times.num_tries == 2000 + again
    assert seconds.min() == pytest.approx(0.13)
    # A refusal and its answer's latency; the wait before the second try is at most 0.1 s.
    once = seconds[(seconds > 0.131) & (seconds < 0.2)]
    assert once.max() < 0.13 + 0.03 + 0.1
    assert times.num_given_up == 0


def test_an_outage_longer_than_the_deadline_ends_reads():
    times, _ = draw(replace(PERFECT, outage=(0.0, 200.0)), 4, start=1.0)
    assert times.num_given_up == 4
    times, seconds = draw(replace(PERFECT, outage=(0.0, 60.0)), 4, start=1.0)
    assert times.num_given_up == 0
    assert 59.0 < seconds.min() <= seconds.max() < 59.0 + 11.0


@pytest.mark.parametrize("ahead", [1, 2_000, 8_000, 20_000, 10**9])
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (0, 2), (1, 2), (2, 4), (3, 4)])
def test_what_is_fetched_when_is_the_loaders_rule(numbered_set, ahead, rank, world_size):
    sample_bytes = 500
    changes = {"num_reader_threads": 1, "fetch_ahead_bytes": ahead}
    stream = make_stream(numbered_set, rank=rank, world_size=world_size, **changes)
    source, call, began = stream.sources[0], 0, {}
    source.sample_bytes = lambda _: sample_bytes

    class Fetcher:
        """A folder is not fetched from ahead; what would be, this is asked for."""

        def start(self, wanted, **_):
            for one in wanted:
                began[one.priority] = call
                (found,) = source.fetch(one.place.shard, [one.place.sample])
                one.pending.put(one.number, found)

        def close(self):
            pass

    loader: Any
    with PromptLoader(stream, list) as loader:
        loader._fetcher = Fetcher()
        for place in (7, 0):  # a seek begins anew
            began.clear()
            num_batches = stream.num_batches - place
            for call in range(num_batches):
                loader.get(0, place + call)
            rule = LookAhead(stream.config, stream.world)
            computed = release_calls(num_batches, len(stream.slots) * sample_bytes, rule)
            assert computed.tolist() == [began[number] for number in sorted(began)]


def test_without_failures_only_the_start_waits():
    found = outcome()
    assert found.stalls[0] > 0.05  # an index, and a sample
    assert found.stalls[1:].tolist() == [0.0] * 19
    assert found.wall_seconds == pytest.approx(20 * SMALL.step_seconds + found.stalls[0])
    assert len(found.request_times) > 20 * 64  # indexes, too
    assert found.per_second.sum() == len(found.request_times)
    assert found.peak() == found.per_second[0] > found.peak(1) > found.peak(20) == 0


@pytest.mark.parametrize(
    ("cluster", "model"),
    [
        (replace(SMALL, slow_node=400.0), PERFECT),
        (replace(SMALL, step_seconds=0.01), PERFECT),
        (SMALL, replace(PERFECT, outage=(15.0, 75.0))),
        (SMALL, replace(PERFECT, node_rate=1e5)),
    ],
    ids=["a slow node", "short steps", "an outage", "a slow link"],
)
def test_everybody_waits_for_the_slowest(cluster, model):
    nothing_ahead = replace(CONFIG, fetch_ahead_bytes=1)
    found = outcome(cluster, model, nothing_ahead)
    assert found.stall_share > 0
    assert found.stalls[1:].max() > 0


def test_more_ahead_rides_an_outage_out():
    model = replace(PERFECT, outage=(15.0, 75.0))
    assert outcome(model=model).stall_share == 0
    assert outcome(model=model, config=replace(CONFIG, fetch_ahead_bytes=1)).stall_share > 0.1


def test_bytes_of_an_epoch():
    plan = SMALL.plan(4)
    found = traffic(SMALL, plan, [200, 1])
    shards = plan.places(0, range(plan.num_batches), range(16, 32))[1]
    counts = plan.sources[0].shard_counts
    assert found.shards_of_node == len(np.unique(shards))
    # With room for everything each shard comes once; with room for one, at nearly every sample.
    assert found.cached[200] == pytest.approx(counts[np.unique(shards)].sum() / shards.size)
    assert found.cached[1] > 10
    assert 1 < found.by_range < 1.1


def test_the_command(tmp_path, capsys):
    flags = ["--ranks", "32", "--num-shards", "400", "--samples-per-shard", "30", "--batches", "8"]
    assert main(["scale", *flags, "--svg", str(tmp_path / "scale.svg"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["generation batches"]["as it comes"]["lost"] == 0
    assert all(row["read / needed"] > 1 for row in found["bytes of an epoch"].values())
    picture = (tmp_path / "scale.svg").read_text()
    assert picture.count("<svg") == 5
    assert "Requests of all ranks" in picture
