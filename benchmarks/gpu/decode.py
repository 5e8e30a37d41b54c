"""Tokens a second of a rollout: eager, compiled, and transformers' ``generate``, in turns.

The policy of the step benchmark (5 million weights), one prompt of words, on the CPU unless there
is a GPU. A family that is not packed is sampled forked, and its eager tokens are ``generate``'s own
behind one prefill. A rate is of the tokens behind the first ones: prefill, and compiling, are not
in it. ``generate`` has a row of its own for each completion, with the prompt's keys in each. Tokens
of all three are compared, with the same random numbers.
"""

import argparse
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.command_line import Commands, new_command
from benchmarks.gpu.launches import FAMILIES

_FEW = 4


def add_command(commands: Commands) -> None:
    """Adds ``decode`` to the command line."""
    command = new_command(commands, "decode", "sampled tokens a second, beside generate", __doc__)
    add = command.add_argument
    add("--family", choices=FAMILIES, default="qwen2_5_vl", help="(%(default)s)")
    add("--num-generations", type=int, default=8, metavar="G", help="(%(default)s)")
    add("--num-tokens", type=int, default=36, metavar="C", help="of a completion (%(default)s)")
    add("--num-prompt-tokens", type=int, default=1300, metavar="P", help="(%(default)s)")
    add("--hidden-size", type=int, default=256, help="of the policy, 4 layers (%(default)s)")
    add("--rounds", type=int, default=5, help="turns of the three (%(default)s)")
    add("--threads", type=int, default=2, help="of torch (%(default)s)")
    add("--json", action="store_true", help="print the figures as JSON")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints the rates."""
    import torch  # noqa: PLC0415 - seconds to import

    torch.set_num_threads(args.threads)
    found = measure(args)
    if args.json:
        print(json.dumps(found))
        return
    sizes = f"P={args.num_prompt_tokens}, G={args.num_generations}, C={args.num_tokens}"
    print(f"{args.family}, {found['way']}, {sizes}")
    for name, rate in found["rates"].items():
        ratio = rate / found["rates"]["generate"]
        print(f"  {name:<10}{rate:>10,.0f} tokens/s{ratio:>8.2f} x generate")
    print(f"  tokens equal: {found['equal']}; compiled in {found['compile_seconds']:.1f} s")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Medians of the rates, by name, whether tokens are equal, and what compiling took."""
    import torch  # noqa: PLC0415

    from benchmarks.gpu.launch_counts import sampling_config, shared_way  # noqa: PLC0415
    from benchmarks.step.step_model import make_policy  # noqa: PLC0415
    from grpo_stream.train.batches.groups import PromptGroups  # noqa: PLC0415
    from grpo_stream.train.models.policy import load_policy  # noqa: PLC0415
    from grpo_stream.train.models.tiny import RECIPES  # noqa: PLC0415
    from grpo_stream.train.prefix.sampling.decoder import Decoder  # noqa: PLC0415
    from grpo_stream.train.prefix.ways import PLAIN  # noqa: PLC0415

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        policy = make_policy(Path(folder) / "policy", args.hidden_size, args.family)
        model = load_policy(policy, dtype=torch.float32, attn_implementation="sdpa")
    model = model.eval().to(device)
    words = torch.randint(20, 60, (args.num_prompt_tokens,), device=device)
    types = "mm_token_type_ids" if args.family in RECIPES else None
    size = [args.num_generations]
    groups = PromptGroups([words], [torch.zeros_like(words)], [{}], size, types_name=types)
    way = shared_way(args.family)
    compiled = Decoder("compiled")
    ways = {
        "eager": partial(way.sample, decoder=Decoder("eager")),
        "compiled": partial(way.sample, decoder=compiled),
        "generate": PLAIN.sample,
    }

    def seconds(sample: Any, num_tokens: int) -> float:
        torch.manual_seed(0)
        start = time.perf_counter()
        tokens[sample] = sample(model, groups, sampling_config(num_tokens), pad_token_id=0)
        float(tokens[sample].sum())  # a GPU is waited for
        return time.perf_counter() - start

    tokens: dict[Any, torch.Tensor] = {}
    compile_seconds = [seconds(sample, _FEW) for sample in ways.values()][1]
    if not compiled.is_compiled:
        raise RuntimeError(compiled.fallback)
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, sample in ways.items():
            few, many = (seconds(sample, number) for number in (_FEW, args.num_tokens))
            found[name].append(args.num_generations * (args.num_tokens - _FEW) / (many - few))
    first, *others = tokens.values()
    return {
        "way": way.name,
        "rates": {name: statistics.median(rates) for name, rates in found.items()},
        "equal": all(torch.equal(first, one) for one in others),
        "compile_seconds": compile_seconds,
    }
