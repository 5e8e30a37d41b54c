"""verify, stats and index on a Ray cluster find what one machine finds."""

import shutil

import pytest
import ray

from grpo_stream.errors import ConfigError
from grpo_stream.shards.manifest import Manifest
from grpo_stream.storage.store import LocalStore
from shard_builder.build.build import build
from shard_builder.cli import main
from shard_builder.datasets.verify import VerifyError, VerifyPass
from shard_builder.passes import ray_looks
from shard_builder.passes.run_pass import PassSettings, run_pass
from tests.shard_builder.support import files_of, make_settings, write_raw

pytestmark = pytest.mark.slow(reason="starts the nodes of a cluster, half a minute")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    build(make_settings(write_raw(folder / "raw", 200), folder / "set"))
    return folder / "set"


@pytest.mark.parametrize("command", ["verify", "stats", "index"])
def test_as_on_one_machine(cluster, built, tmp_path, capsys, command):
    sets = [shutil.copytree(built, tmp_path / name) for name in ("here", "there")]
    if command == "index":
        for one in sets:
            for path in [path for path in one.iterdir() if path.suffix != ".tar"]:
                path.unlink()
    flags = ["--json", "--quiet"] if command == "stats" else ["--quiet"]
    said = []
    for one, executor in zip(sets, ("local", "ray"), strict=True):
        address = ["--ray-address", cluster.address] if executor == "ray" else []
        assert main([command, str(one), *flags, "--executor", executor, *address]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert files_of(sets[0]) == files_of(sets[1])
    assert not ray.is_initialized()


def passed(folder, address, **settings):
    store = LocalStore(folder)
    one = VerifyPass(store, Manifest.load(store))
    return run_pass(one, PassSettings(executor="ray", ray_address=address, **settings))


def test_the_first_fault_in_the_sets_order_and_a_lost_task(cluster, built, tmp_path, monkeypatch):
    folder = shutil.copytree(built, tmp_path / "set")
    result_of = ray_looks.result_of_task
    lost: list[bool] = []

    def lose_some(ref, *, is_last_try):
        if len(lost) < 3:
            ray.get(ref)
            lost.append(is_last_try)
            return None
        return result_of(ref, is_last_try=is_last_try)

    monkeypatch.setattr(ray_looks, "result_of_task", lose_some)
    assert passed(folder, cluster.address).num_samples
    assert len(lost) == 3
    tars = sorted(folder.glob("*.tar"))
    for tar in (tars[30], tars[7]):
        tar.write_bytes(tar.read_bytes()[:-1])
    with pytest.raises(VerifyError, match=tars[7].name):
        passed(folder, cluster.address)


def test_a_node_that_has_another_version_says_so(cluster, built, monkeypatch):
    request = VerifyPass.request
    monkeypatch.setattr(
        VerifyPass, "request", lambda self: request(self) | {"builder_version": "9"}
    )
    with pytest.raises(ConfigError, match=r"is another on node .*builder_version is"):
        passed(built, cluster.address)
