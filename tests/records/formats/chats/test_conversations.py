import json
from typing import Any

import pytest

from grpo_stream.records.formats.chats.conversations import conversation_records
from grpo_stream.records.formats.chats.places import places_in
from grpo_stream.records.formats.forms import Context
from tests.records.formats.support import formed, read_all, write

BOX = [12, 5, 40, 60]


def boxes_in(answer):
    places = places_in(answer)
    return [] if places is None else places.numbers


def records_of(row):
    return [record for _, record in formed(conversation_records(row, Context("chat")))]


def conversation(*texts, **more):
    speakers = ("human", "gpt") * len(texts)
    turns = [{"from": who, "value": text} for who, text in zip(speakers, texts, strict=False)]
    return {"id": 1, "image": "a.jpg", "conversations": turns} | more


@pytest.mark.parametrize(
    ("answer", "boxes"),
    [
        ("[12, 5, 40, 60]", [BOX]),
        (BOX, [BOX]),
        ("<think>[1, 2, 3, 4]?</think><answer> [12, 5, 40, 60] </answer>", [BOX]),
        ('{"bbox_2d": [12, 5, 40, 60], "label": "key"}', [BOX]),
        ('```json\n[{"bbox_2d": [12, 5, 40, 60]}, {"point_2d": [1, 2]}]\n```', [BOX, [1, 2]]),
        ("It is at [0.1,0.25, .5 ,1.0].", [[0.1, 0.25, 0.5, 1.0]]),
        ("[1, 2, 3, 4] and [5, 6, 7, 8]", [[1, 2, 3, 4], [5, 6, 7, 8]]),
        ("[[1, 2, 3, 4], [5, 6, 7, 8]]", [[1, 2, 3, 4], [5, 6, 7, 8]]),
        ("<box>(12,5),(40,60)</box>", [BOX]),
        ("<|box_start|>(12,5),(40,60)<|box_end|>", [BOX]),
        (" (12, 5) ", [[12, 5]]),
        ("[12, 5]", [[12, 5]]),
        ("a list [1, 2, 3] of three", []),
        ("f(1, 2) is 3", []),
        ("0", []),
        (7.5, []),
        (None, []),
        ("[true, false]", []),
        ("[" * 100_000, []),
        ("[" + "9" * 5000 + ", 1]", [[float("inf"), 1]]),
    ],
)
def test_answers(answer, boxes):
    assert boxes_in(answer) == boxes


def test_vlm_r1(tmp_path):
    row = conversation("<image>Where is the key?", "<answer> [12, 5, 40, 60] </answer>", split="a")
    source, records = read_all(write(tmp_path / "a.jsonl", json.dumps(row) + "\n"))
    assert source.format == "chat"
    record = {"image": "a.jpg", "prompt": "Where is the key?", "solution": BOX}
    assert records == [(0, record | {"id": 1, "split": "a"})]


def test_llava_has_many_turns(tmp_path):
    box = [0.25, 0.5, 0.75, 1.0]
    chat = (
        "<image>\nWhat is it?",
        "A desk.",
        "Where is the cup?",
        str(box),
        "The pen?",
        "[0,0,1,1]",
    )
    rows = [conversation(*chat), conversation("Hi", "Hello"), {"id": 3, "conversations": []}, 5]
    source, records = read_all(write(tmp_path / "a.json", rows))
    assert source.format == "chat"
    assert [(i, r["prompt"], r["solution"], r["turn"]) for i, r in records[:2]] == [
        (0, "Where is the cup?", box, 1),
        (0, "The pen?", [0, 0, 1, 1], 2),
    ]
    assert [(i, getattr(r, "cause", r)) for i, r in records[2:]] == [
        (1, "answer_no_box"),
        (2, "conversation_missing"),
        (3, 5),
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"images": ["a.jpg"], "messages": [
            {"role": "system", "content": "You are helpful."},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where?"}]},
            {"role": "assistant", "content": "[12, 5, 40, 60]"}]},
        {"image": "a.jpg", "conversations": {
            "from": ["human", "gpt"], "value": ["Where?\n<image>", "[12, 5, 40, 60]"]}},
        {"image": "a.jpg", "conversations": [
            {"from": "human", "value": "Where?"}, {"from": "gpt", "value": [12, 5, 40, 60]}]},
    ],
    ids=["messages", "columns", "numbers"],
)  # fmt: skip
def test_other_spellings(row):
    assert records_of(row) == [{"image": "a.jpg", "prompt": "Where?", "solution": BOX}]


def test_several_images_and_boxes():
    record: Any
    (record,) = records_of(
        conversation("<image><image>Which?", "[[1, 2, 3, 4], [5, 6, 7, 8]]", image=["a", "b"])
    )
    assert record["image"] == ["a", "b"]
    assert record["prompt"] == "<image><image>Which?"
    assert record["solution"] == [[1, 2, 3, 4], [5, 6, 7, 8]]


@pytest.mark.parametrize("has_urls", [True, False])
def test_places_of_several_images_among_parts(has_urls):
    names = ["a.jpg", "b.jpg"]
    urls = [{"type": "image_url", "image_url": {"url": name}} for name in names]
    before, after = urls if has_urls else [{"type": "image"}] * 2
    texts = [{"type": "text", "text": text} for text in ("From ", " to ", ": what is new?")]
    content = [texts[0], before, texts[1], after, texts[2]]
    answer = {"role": "assistant", "content": "[12, 5, 40, 60]"}
    row = {"messages": [{"role": "user", "content": content}, answer]}
    record: Any
    (record,) = records_of(row if has_urls else row | {"images": names})
    assert record["prompt"] == "From <image> to <image>: what is new?"
    assert record["image"] == names
