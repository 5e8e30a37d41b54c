"""Every benchmark as it is: small sets in its own shape, read, answered and told apart."""

import json
import random
from typing import Any

import pytest
from PIL import Image

from grpo_stream.errors import ConfigError
from grpo_stream.grounding.evaluation.evaluation_metrics import evaluation_figures, pick_fields
from grpo_stream.grounding.scores import score_answer
from grpo_stream.stream.ordered_reader import read_at
from grpo_stream.stream.world import World
from grpo_stream.targets import WANTED_FIELD, centre_of, read_target
from grpo_stream.train.evaluate.evaluation_arguments import EvaluateArguments
from grpo_stream.train.evaluate.evaluation_plan import plan_evaluation

NUM = 24
SIZE = WIDTH, HEIGHT = 1920, 1080


def boxes_of(seed):
    """Boxes all over a screen, some of them far right and low."""
    draw = random.Random(seed)
    found = []
    for _ in range(NUM):
        width, height = draw.randint(20, 300), draw.randint(16, 200)
        x, y = draw.randint(0, WIDTH - width), draw.randint(0, HEIGHT - height)
        found.append([x, y, x + width, y + height])
    return found


def xywh(box):
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def said(number):
    return f"click thing {number}"


def screenspot(_):
    """ScreenSpot and -v2: a file a platform, x, y, width, height in pixels."""
    truths = [boxes_of(1), boxes_of(2)]
    files = {
        f"screenspot_{name}_v2.json": [
            {"img_filename": "a.png", "bbox": xywh(box), "instruction": said(n),
             "data_type": ("icon", "text")[n % 2], "data_source": name}
            for n, box in enumerate(boxes)
        ]
        for name, boxes in zip(("web", "mobile"), truths, strict=True)
    }  # fmt: skip
    truth = truths[1] + truths[0]  # files by name
    return (
        files,
        truth,
        {"input_file": 2, "data_type": 2, "data_source": 2, "input_file+data_type": 4},
    )


def screenspot_pro(is_positive=True, *, language="en"):
    """ScreenSpot-Pro: a file an application, corners in pixels; its evaluator's negatives."""
    boxes = boxes_of(3)
    rows = [
        {"img_filename": "a.png", "bbox": box, "instruction": said(n),
         "instruction_cn": f"点击 {n}",
         "id": f"word_{n}", "application": ("word", "vscode")[n % 2], "platform": "windows",
         "img_size": [WIDTH, HEIGHT], "ui_type": ("text", "icon")[n // 2 % 2],
         "group": ("Office", "Dev")[n % 2]}
        for n, box in enumerate(boxes)
    ]  # fmt: skip
    groups = {"application": 2, "ui_type": 2, "group": 2, "group+ui_type": 4}
    if is_positive:
        return {"all.json": rows}, boxes, groups
    for row, word in zip(rows[::3], ("negative", "Negative") * NUM, strict=False):
        row["gt_type"] = word
    truth = [[] if n % 3 == 0 else box for n, box in enumerate(boxes)]
    return {"all.json": rows}, truth, groups | {"gt_type": 3}


def osworld_g(_, words="click thing {}"):
    """OSWorld-G and its refined form: boxes, polygons and refusals in one file."""
    rows, truth = [], []
    for n, (x1, y1, x2, y2) in enumerate(boxes_of(4)):
        kind = ("bbox", "polygon", "bbox", "refusal")[n % 4]
        outline = [x1, y1, x2, y1, x2, y2, (x1 + x2) / 2 + 3, y2]
        numbers = {"bbox": xywh((x1, y1, x2, y2)), "polygon": outline, "refusal": [-1] * 4}[kind]
        rows.append(
            {"id": f"a-{n}", "image_path": "a.png", "image_size": [WIDTH, HEIGHT],
             "instruction": words.format(n), "box_type": kind, "box_coordinates": numbers,
             "GUI_types": ["Button"] if n % 2 else ["Button", "Icon"]}
        )  # fmt: skip
        truth.append({"bbox": [x1, y1, x2, y2], "polygon": outline, "refusal": []}[kind])
    return {"OSWorld-G.json": rows}, truth, {"box_type": 3, "GUI_types": 2}


def osworld_g_refined(_):
    files, truth, groups = osworld_g(_, "the thing that is number {} of all")
    return {"OSWorld-G_refined.json": files["OSWorld-G.json"]}, truth, groups


def mmbench_gui(_):
    """MMBench-GUI L2: corners in 0-1."""
    boxes = boxes_of(5)
    rows = [
        {"index": n, "image_path": "os_web/a.png", "instruction": said(n),
         "bbox": [round(number / side, 4) for number, side in zip(box, SIZE * 2, strict=True)],
         "image_size": [WIDTH, HEIGHT], "data_type": ("icon", "text")[n % 2],
         "platform": ("os_web", "os_ios")[n // 2 % 2], "app_name": "calendar",
         "grounding_type": ("basic", "advanced")[n // 4 % 2]}
        for n, box in enumerate(boxes)
    ]  # fmt: skip
    groups = {"platform": 2, "grounding_type": 2, "platform+grounding_type": 4, "data_type": 2}
    return {"L2_annotations.json": rows}, boxes, groups


def ui_vision(_):
    """UI-Vision: a file a task, two opposite corners in pixels."""
    boxes = boxes_of(6) + boxes_of(16)
    rows = [
        {"image_path": "a.png", "image_size": [WIDTH, HEIGHT], "prompt_to_evaluate": said(n),
         "bbox": [x2, y1, x1, y2] if n % 5 == 0 else [x1, y1, x2, y2],
         "platform": ("blender", "gimp", "zotero")[n % 3],
         "element_type": ("icon", "menu")[n % 2]}
        for n, (x1, y1, x2, y2) in enumerate(boxes)
    ]  # fmt: skip
    files = {
        "element_grounding_basic.json": rows[:NUM],
        "element_grounding_spatial.json": rows[NUM:],
    }
    return files, boxes, {"input_file": 2, "platform": 3, "element_type": 2}


def ui_vision_layout(_):
    """UI-Vision's regions: a name and an explanation in the place of an instruction."""
    files, truth, _ = ui_vision(_)
    for n, row in enumerate(files["element_grounding_basic.json"]):
        del row["prompt_to_evaluate"], row["element_type"]
        row |= {"name": f"bar {n}", "explanation": "Holds the tools"}
    rows = files["element_grounding_basic.json"]
    return {"layout_grounding.json": rows}, truth[:NUM], {"platform": 3}


def refcoco(_):
    """RefCOCO, + and g: references with their sentences, COCO's instances beside them."""
    boxes = boxes_of(7)[: NUM // 2]
    rows = [
        {"ref_id": n, "ann_id": 100 + n, "image_id": 1, "category_id": 1,
         "split": ("testA", "testB")[n % 2],
         "sentences": [{"sent": said(i), "sent_id": i} for i in (2 * n, 2 * n + 1)]}
        for n in range(len(boxes))
    ]  # fmt: skip
    instances = {
        "images": [{"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}],
        "annotations": [
            {"id": 100 + n, "image_id": 1, "category_id": 1, "bbox": xywh(box)}
            for n, box in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "cup"}],
    }
    truth = [box for box in boxes for _ in range(2)]
    return {"refs.json": rows, "instances.json": instances}, truth, {"split": 2}


def plain(_):
    """A file of one's own, with the builder's flags."""
    boxes = boxes_of(8)
    rows = [
        {"picture": "a.png", "words": said(n),
         "place": [1000 * v / side for v, side in zip(xywh(box), SIZE * 2, strict=True)],
         "group": ("x", "y")[n % 2]}
        for n, box in enumerate(boxes)
    ]  # fmt: skip
    return {"own.json": rows}, boxes, {"group": 2}


KEYS = {"image_key": "picture", "prompt_key": "words", "solution_key": "place"}
RUNS = [
    (screenspot, True, {}),
    (screenspot, True, {"format": "screenspot"}),
    (screenspot_pro, True, {}),
    (screenspot_pro, True, {"format": "screenspot", "prompt_key": "instruction_cn"}),
    (screenspot_pro, True, {"prompt_key": "instruction_cn"}),
    (screenspot_pro, False, {}),
    (osworld_g, True, {}),
    (osworld_g, True, {"format": "osworld"}),
    (osworld_g_refined, True, {}),
    (mmbench_gui, True, {}),
    (mmbench_gui, True, {"format": "mmbench_gui"}),
    (ui_vision, True, {}),
    (ui_vision, True, {"format": "ui_vision"}),
    (ui_vision_layout, True, {}),
    (ui_vision_layout, True, {"format": "ui_vision"}),
    (refcoco, True, {}),
    (plain, True, {**KEYS, "coords": "per_mille"}),
    (plain, True, {**KEYS, "box_format": "xywh", "coords": "per_mille"}),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("screens")
    (folder / "os_web").mkdir()
    for name in ("a.png", "os_web/a.png"):
        Image.new("RGB", SIZE, (40, 60, 90)).save(folder / name)
    return folder


def plan_of(files, tiny_folder, images, folder, **flags):
    words = []
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value, ensure_ascii=False))
        words += [str(folder / name)] if name != "instances.json" else []
    where = str(folder / "report")
    own = {"json": sorted(words), "images_root": str(images), **flags}
    return plan_evaluation(EvaluateArguments(str(tiny_folder), where, **own), World())


def scored(sample, fields, right):
    """A right answer or a wrong one: the truth's middle, or the upper left corner."""
    target = read_target(sample.solutions, sample.extra.get(WANTED_FIELD))
    text = "(0, 0)"
    if right:
        text = "not found"
        if not target.is_absent:
            centre = centre_of(target.shapes[0])
            text = f"({centre.x}, {centre.y})"
    return score_answer(
        text,
        sample.solutions,
        key=sample.key,
        prompt=sample.prompt,
        scales=sample.size,
        model_size=sample.size,
        answer_frame="original",
        image=sample.key,
        fields=pick_fields(sample.extra, fields),
        wanted=sample.extra.get(WANTED_FIELD),
    )


@pytest.mark.parametrize(("shape", "is_positive", "flags"), RUNS)
def test_a_benchmark_as_it_is(shape, is_positive, flags, tiny_folder, images, tmp_path):
    files, truth, groups = shape(is_positive)
    plan = plan_of(files, tiny_folder, images, tmp_path, **flags)
    samples = [read_at(plan.source, n) for n in range(int(plan.source.shard_counts.sum()))]
    found = [list(sample.solution) for sample in samples]
    assert len(found) == len(truth)
    for one, wanted in zip(found, truth, strict=True):
        assert one == pytest.approx(wanted, abs=0.1)  # MMBench-GUI rounds
    if flags.get("prompt_key") == "instruction_cn":
        assert samples[0].prompt == "点击 0"
    if shape is ui_vision_layout:
        assert samples[2].prompt == "bar 2: Holds the tools"

    answers = [scored(sample, plan.fields, n % 4 != 1) for n, sample in enumerate(samples)]
    results = evaluation_figures(answers, asks_boxes=False, num_resamples=100)
    counts = {name: len(parts) for name, parts in results["slices"].items()}
    assert {name: counts.get(name) for name in groups} == groups
    figures = results["figures"]
    num_absent = sum(not one for one in truth)
    assert figures["point_accuracy"]["num_samples"] == len(truth) - num_absent
    if num_absent:
        # Apart and together.
        rights = [(n % 4 != 1, not one) for n, one in enumerate(truth)]
        absent = [right for right, is_absent in rights if is_absent]
        assert figures["refusal_accuracy"]["value"] == sum(absent) / num_absent
        assert figures["with_refusals"]["value"] == sum(r for r, _ in rights) / len(truth)
    else:
        assert figures["with_refusals"] is None
        assert figures["point_accuracy"]["value"] == 0.75


def test_how_a_benchmark_was_read_is_said(tiny_folder, images, tmp_path):
    files, _, _ = osworld_g(True)
    lines = plan_of(files, tiny_folder, images, tmp_path).readings
    words = "\n".join(line.replace(str(tmp_path), "") for line in lines)
    assert "osworld: box_coordinates (bbox): x, y, width, height in pixels" in words
    assert "osworld: box_coordinates (polygon): polygons in pixels" in words
    assert "osworld: 6 records of what is not there" in words


@pytest.mark.parametrize("name", ["image_key", "prompt_key", "solution_key", "coords"])
def test_flags_of_records_go_with_json(name, tiny_folder, shapes, tmp_path):
    own: dict[str, Any] = {"shards": str(shapes.shards), name: "unit"}
    args = EvaluateArguments(str(tiny_folder), str(tmp_path / "report"), **own)
    with pytest.raises(ConfigError, match="goes with json") as caught:
        plan_evaluation(args, World())
    assert caught.value.field == name
