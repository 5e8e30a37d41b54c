"""A newcomer's first hour: five sources in one folder, the README's commands, at most two tries."""

import json
import random

import pytest
from PIL import Image, ImageDraw

from grpo_stream.images import decode
from grpo_stream.shards.manifest import Manifest
from grpo_stream.shards.tar import iter_samples
from grpo_stream.storage.store import LocalStore
from shard_builder.cli import main

SCREENS = {"wide.png": (1280, 720), "phone.png": (390, 844), "large.png": (1920, 1080)}
NUM_EACH = 72
GREY, RED = (230, 230, 230), (200, 20, 20)


def targets(rng, names, folder, source):
    """Red panels on a few screens: (image, words, box in pixels, size)."""
    (folder / source).mkdir(exist_ok=True)
    screens = {name: Image.new("RGB", SCREENS[name], GREY) for name in names}
    found = []
    for number in range(NUM_EACH):
        name = rng.choice(names)
        width, height = SCREENS[name]
        w, h = rng.randint(20, width // 4), rng.randint(16, height // 8)
        x, y = rng.randint(0, width - w), rng.randint(0, height - h)
        ImageDraw.Draw(screens[name]).rectangle((x, y, x + w - 1, y + h - 1), fill=RED)
        asked = f"Click panel {number} of {source}"
        found.append((f"{source}/{name}", asked, [x, y, x + w, y + h], (width, height)))
    for name, image in screens.items():
        image.save(folder / source / name, compress_level=1)
    return found


def scaled(box, size, scale, digits):
    return [round(n / size[i % 2] * scale, digits) for i, n in enumerate(box)]


def talk(question, answer):
    return [{"role": "user", "content": f"<image>{question}"},
            {"role": "assistant", "content": answer}]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    rng = random.Random(11)
    images = tmp_path / "images"
    images.mkdir()
    everything = list(SCREENS)

    plain = [{"image": i, "prompt": q, "solution": b}
             for i, q, b, _ in targets(rng, everything, images, "plain")]  # fmt: skip
    own = [{"img_filename": i, "instruction": q, "bbox": b, "id": 7}
           for i, q, b, _ in targets(rng, everything, images, "own")]  # fmt: skip
    elements = [{"img_filename": i, "elements": [{"instruction": q, "bbox": scaled(b, s, 1, 4)}]}
                for i, q, b, s in targets(rng, everything, images, "elements")]  # fmt: skip
    # A few boxes, all numbers to 1000, all screens larger: pixels fit them, too.
    chat = [
        {"messages": talk(q, json.dumps([{"bbox_2d": scaled(b, s, 1000, None)}])), "images": [i]}
        for i, q, b, s in targets(rng, ["large.png"], images, "chat")
    ]
    steps = []
    for number, (i, q, b, s) in enumerate(targets(rng, everything, images, "steps")):
        x, y = scaled([(b[0] + b[2]) / 2, (b[1] + b[3]) / 2], s, 1, 4)
        act = f"pyautogui.click(x={x}, y={y})" if number % 20 else "pyautogui.write('hello')"
        steps.append({"messages": talk(q, act), "images": [i]})
    for name, rows in (("plain", plain), ("own", own), ("elements", elements)):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    for name, rows in (("chat", chat[:12]), ("steps", steps)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_at_most_two_tries(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    words = ["build", "*.json", "*.jsonl", "--images-root", "images/", "--out", "shards/train"]
    code = main(words)
    asked = capsys.readouterr().err
    assert code == 2
    assert "chat.jsonl" in asked
    assert "--accept-reading" in asked
    assert "xyxy-per_mille: x" in asked
    assert not (folder / "shards" / "train").exists()
    assert main([*words, "--accept-reading", "xyxy-per_mille"]) == 0
    said = capsys.readouterr().out
    readings = [line for line in said.splitlines() if line.startswith("reading ")]
    assert len(readings) == 5
    assert main(["verify", "shards/train"]) == 0
    assert main(["show", "shards/train"]) == 0
    assert "own.json" in (folder / "show" / "index.html").read_text()
    manifest = Manifest.load(LocalStore("shards/train"))
    assert manifest.num_samples == 4 * NUM_EACH + 12 - 4
    assert manifest.rejects == {"answer_no_box": 4}
    for shard in manifest.shards:
        with (folder / "shards" / "train" / shard.name).open("rb") as file:
            for sample in iter_samples(file, shard.name):
                x, y = sample.solution[:2]
                if len(sample.solution) == 4:
                    x, y = (x + sample.solution[2]) / 2, (y + sample.solution[3]) / 2
                assert tuple(decode(sample.image)[int(y), int(x)]) == RED, sample.prompt
