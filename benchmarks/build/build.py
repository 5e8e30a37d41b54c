"""Times the shard builder beside a plain tarfile loop, webdataset's writer and the bare decoder.

All run over the same files, one after the other, in every round, so that what else the machine
does falls on all of them; the ratios are the message. Every sample has an image file of its own.
"""

import argparse
import io
import json
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.command_line import Commands, new_command
from grpo_stream.boxes import Size
from grpo_stream.image_encoding import Encoding, encode_jpeg
from grpo_stream.images import ResizeRule, decode, resize
from grpo_stream.records.stored_image import Check, PictureRules
from shard_builder.build.build import BuildSettings, build
from shard_builder.build.build_settings import Executor
from shard_builder.build.chunk_plan import ShardLimits

_EPILOG = """\
plain        tarfile.addfile of each image and its JSON, nothing checked
webdataset   webdataset.ShardWriter
header       shard-builder build --check header
decode       shard-builder build
resize       shard-builder build --max-pixels ... --reencode jpeg:90
decode, ray  shard-builder build --executor ray, on a cluster of one node that is up before
bare decode  every file read and decoded, one core; bare resize: and resized and encoded
"""
SCREENSHOTS = Path(__file__).parents[2] / "data" / "screenshots"
"""Records and images that come with the repository."""
_Times = dict[str, list[float]]


def add_command(commands: Commands) -> None:
    """Adds ``build`` to the command line."""
    command = new_command(
        commands,
        "build",
        "the shard builder beside a tarfile loop and the bare decoder",
        __doc__,
        _EPILOG,
    )
    add_records(command, num_samples=4000)
    add = command.add_argument
    add("--workers", type=int, default=2, help="for the second figure of each mode (%(default)s)")
    add("--max-pixels", type=int, default=28 * 28 * 1280, help="of the resize (%(default)s)")
    add("--quality", type=int, default=90, help="of the re-encoded JPEG (%(default)s)")
    add("--only", nargs="+", default=[], help="only contestants whose name starts so")
    add("--executor", choices=("local", "ray"), default="local", help="ray: beside local")
    command.set_defaults(run=run)


def add_records(command: argparse.ArgumentParser, num_samples: int) -> None:
    """Adds the flags that say what is built, how often, and where."""
    add = command.add_argument
    add("--records", type=Path, default=SCREENSHOTS / "records.json", help="JSON array")
    add("--images-root", type=Path, default=SCREENSHOTS, help="of the records")
    add("--num-samples", type=int, default=num_samples, help="copies of the images (%(default)s)")
    add("--samples-per-shard", type=int, default=500, help="(%(default)s)")
    add("--rounds", type=int, default=3, help="(%(default)s)")
    add("--folder", type=Path, help="for the files; a temporary one if not given")
    add("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> None:
    """Prints seconds and ratios."""
    with tempfile.TemporaryDirectory(dir=args.folder) as temp:
        folder = Path(temp)
        records = copy_images(args, folder)
        contestants = {
            name: contestant
            for name, contestant in _contestants(args, folder, records).items()
            if not args.only or name.startswith(tuple(args.only))
        }
        if args.executor == "ray":
            import ray  # noqa: PLC0415 - an extra

            ray.init(num_cpus=args.workers, include_dashboard=False, logging_level="ERROR")
        times: _Times = {name: [] for name in contestants}
        for _ in tqdm(range(args.rounds), "rounds", disable=args.json):
            for name, contestant in contestants.items():
                out = folder / "out"
                start = time.perf_counter()
                contestant(out)
                times[name].append(time.perf_counter() - start)
                shutil.rmtree(out, ignore_errors=True)
    figures: dict[str, dict[str, Any]] = {
        "seconds": {name: round(statistics.median(times[name]), 3) for name in times},
        "ratios": _ratios(times, args.workers),
        "settings": {
            name: str(value) for name, value in vars(args).items() if name not in ("run", "json")
        },
    }
    if args.json:
        print(json.dumps(figures))
        return
    for title in ("seconds", "ratios"):
        print(f"{title} (median of {args.rounds} rounds, {args.num_samples} samples)")
        for name, value in figures[title].items():
            print(f"  {name:<44}{value:.3f}")


def copy_images(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Writes ``num_samples`` records, each with an image file of its own, and returns them.

    Args:
        args: Its ``records``, ``images_root`` and ``num_samples`` say of what.
        folder: Gets ``records.json`` and ``images/``.
    """
    raw = json.loads(args.records.read_text())
    records = []
    for number in range(args.num_samples):
        record = raw[number * 7919 % len(raw)]  # neighbours differ: no cache helps
        suffix = Path(record["image"]).suffix
        name = f"images/{number // 1000:03d}/{number:06d}{suffix}"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(args.images_root / record["image"], path)
        prompt = f"{record['prompt']} ({number})"  # no two samples are alike
        records.append({**record, "image": name, "prompt": prompt})
    (folder / "records.json").write_text(json.dumps(records))
    return records


def _contestants(
    args: argparse.Namespace, folder: Path, records: list[dict[str, Any]]
) -> dict[str, Callable[[Path], None]]:
    paths = [folder / record["image"] for record in records]
    rule = ResizeRule(max_pixels=args.max_pixels)
    encoding = Encoding("jpeg", args.quality)

    def ours(
        check: Check, num_workers: int, *, is_resized: bool, executor: Executor = "local"
    ) -> Callable[[Path], None]:
        pictures = PictureRules(check=check)
        if is_resized:
            pictures = PictureRules(check=check, resize=rule, encoding=encoding)

        def run_build(out: Path) -> None:
            build(
                BuildSettings(
                    inputs=(str(folder / "records.json"),),
                    images_root=str(folder),
                    out=str(out),
                    pictures=pictures,
                    limits=ShardLimits(max_samples=args.samples_per_shard),
                    num_workers=num_workers,
                    executor=executor,
                )
            )

        return run_build

    def bare_decode(out: Path) -> None:  # noqa: ARG001 - nothing is written
        for path in paths:
            decode(path.read_bytes())

    def bare_resize(out: Path) -> None:  # noqa: ARG001
        for path in paths:
            pixels = decode(path.read_bytes())
            height, width = pixels.shape[:2]
            encode_jpeg(resize(pixels, rule.target(Size(width, height))), args.quality)

    found: dict[str, Callable[[Path], None]] = {
        "plain": lambda out: _plain(out, folder / "records.json", folder),
        "webdataset": lambda out: _webdataset(out, folder / "records.json", folder, args),
        "bare decode": bare_decode,
        "bare resize": bare_resize,
    }
    for num_workers in dict.fromkeys((1, args.workers)):
        found[f"header, {num_workers}"] = ours("header", num_workers, is_resized=False)
        found[f"decode, {num_workers}"] = ours("decode", num_workers, is_resized=False)
        found[f"resize, {num_workers}"] = ours("decode", num_workers, is_resized=True)
    if args.executor == "ray":
        name = f"decode, {args.workers}, ray"
        found[name] = ours("decode", args.workers, is_resized=False, executor="ray")
    return found


def _ratios(times: _Times, num_workers: int) -> dict[str, float]:
    pairs = [("webdataset / plain", "plain", "webdataset", 1)]
    for workers in dict.fromkeys((1, num_workers)):
        pairs += [
            (f"header, {workers} / plain", "plain", f"header, {workers}", 1),
            (
                f"decode, {workers} / ({workers} x bare)",
                "bare decode",
                f"decode, {workers}",
                workers,
            ),
            (
                f"resize, {workers} / ({workers} x bare)",
                "bare resize",
                f"resize, {workers}",
                workers,
            ),
        ]
    name = f"decode, {num_workers}"
    pairs.append((f"{name}, ray / {name}", name, f"{name}, ray", 1))
    return {
        name: round(
            statistics.median(
                base / other / factor
                for base, other in zip(times[baseline], times[contestant], strict=True)
            ),
            3,
        )
        for name, baseline, contestant, factor in pairs
        if baseline in times and contestant in times
    }


def _samples(records: Path, folder: Path) -> Iterator[tuple[str, str, bytes, bytes]]:
    for number, record in enumerate(json.loads(records.read_text())):
        path = folder / record["image"]
        yield f"{number:09d}", path.suffix[1:], path.read_bytes(), json.dumps(record).encode()


def _plain(out: Path, records: Path, folder: Path) -> None:
    out.mkdir()
    with tarfile.open(out / "all.tar", "w") as tar:
        for key, suffix, image, text in _samples(records, folder):
            for name, data in ((f"{key}.{suffix}", image), (f"{key}.json", text)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def _webdataset(out: Path, records: Path, folder: Path, args: argparse.Namespace) -> None:
    from webdataset import ShardWriter  # noqa: PLC0415 - only this contestant needs it

    out.mkdir()
    pattern = str(out / "shard-%06d.tar")
    with ShardWriter(pattern, maxcount=args.samples_per_shard, verbose=0) as writer:
        for key, suffix, image, text in _samples(records, folder):
            writer.write({"__key__": key, suffix: image, "json": text})
