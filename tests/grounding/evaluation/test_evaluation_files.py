import json

import pytest

from grpo_stream.errors import ConfigError
from grpo_stream.grounding.evaluation.evaluation_files import check_same_data, read_run, write_run
from grpo_stream.storage import atomic_files
from grpo_stream.storage.atomic_files import no_room_line
from tests.grounding.support import answer

ANSWERS = [answer("(150, 150)", key="a"), answer("no \ud800 idea \N{SNOWMAN}", key="b")]
RESULTS = {"model": "m", "data": {"digest": "d" * 64}}


def test_what_is_written_is_read_again(tmp_path):
    page = write_run(tmp_path / "report", RESULTS, ANSWERS, "<p>page</p>")
    assert page.read_text() == "<p>page</p>"
    for path in (tmp_path / "report", tmp_path / "report/results.json"):
        run = read_run(path)
        assert run.answers == ANSWERS
        assert run.results == {"version": 2, **RESULTS}
        check_same_data(run, "d" * 64)
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "answers.jsonl",
        "index.html",
        "results.json",
    ]


def test_figures_never_lie_beside_answers_of_another_run(tmp_path, monkeypatch):
    write_run(tmp_path, RESULTS, ANSWERS, "old")
    named = []

    def die_at_the_second(folder):
        named.append(folder)
        if len(named) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(atomic_files, "sync_folder", die_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        write_run(tmp_path, RESULTS, ANSWERS[:1], "new")
    assert not (tmp_path / "results.json").exists()
    with pytest.raises(ConfigError, match="is no report of an evaluation"):
        read_run(tmp_path)


@pytest.mark.parametrize("name", ["answers.jsonl", "index.html", "results.json"])
def test_a_full_disk_leaves_what_was_there(tmp_path, full_disk, name):
    write_run(tmp_path, RESULTS, ANSWERS, "old")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    full_disk(tmp_path / name)
    with pytest.raises(OSError, match=name) as caught:
        write_run(tmp_path, RESULTS, ANSWERS[:1], "new")
    assert no_room_line(caught.value) == (
        f"{tmp_path / name}: No space left on device; make room and start the same command again"
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_other_data_and_other_versions_are_refused(tmp_path):
    write_run(tmp_path, RESULTS, ANSWERS, "")
    with pytest.raises(ConfigError, match=r"of other samples \(digest dddddddddddd, here eeee"):
        check_same_data(read_run(tmp_path), "e" * 64)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(RESULTS | {"version": 1}))
    assert read_run(tmp_path).answers == ANSWERS
    path.write_text(json.dumps(RESULTS | {"version": 3}))
    with pytest.raises(ConfigError, match="version 3, this program reads 1 and 2"):
        read_run(tmp_path)
    with pytest.raises(ConfigError, match=r"compare=.*no report"):
        read_run(tmp_path / "nothing")
