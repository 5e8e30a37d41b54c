"""A block of ``gpu_check``: a token eager, compiled and in ``generate``, beside reading weights."""

from functools import partial
from typing import Any

from benchmarks.gpu.deep_policy import make_groups
from benchmarks.gpu.device_rates import bytes_a_second, bytes_of_a_token
from benchmarks.gpu.expectations import Figures
from benchmarks.gpu.gpu_bench import Bench
from benchmarks.gpu.launch_counts import sampling_config
from grpo_stream.train.prefix.sampling.decoder import Decoder
from grpo_stream.train.prefix.ways import PLAIN, PrefixWay

# The shorter rollout has compiled, compared and recorded what the longer one replays.
_FEW, _MANY = 5, 25


def rollout(bench: Bench) -> None:
    """Seconds of a token of 4 x 8 completions, beside what reading the weights once takes."""
    model = bench.policy().eval()
    rate = bytes_a_second(bench)
    reading = bytes_of_a_token(model) / rate
    bench.note("bytes_a_second", rate)
    bench.note("reading_weights", reading)
    measure = partial(_figures_of_token, bench, reading)
    bench.attempt("eager", partial(measure, model, bench.packed, Decoder(), 4))
    plain = bench.policy(is_ours=False).eval()
    bench.attempt("generate", partial(measure, plain, PLAIN, None, 1))
    del plain
    # At the end, as it takes longest: minutes for the layers of the 3B model.
    decoder = Decoder("compiled")
    bench.attempt("compiled", partial(measure, model, bench.packed, decoder, 4))


def _figures_of_token(
    bench: Bench, reading: float, model: Any, way: PrefixWay, decoder: Decoder | None, prompts: int
) -> Figures:
    """Seconds of a token behind the first ones, of all completions of so many prompts together."""
    groups = make_groups(model, prompts, bench.num_generations, bench.grid)
    more = {} if decoder is None else {"decoder": decoder}
    sample = partial(way.sample, model, groups, pad_token_id=0, **more)
    few, many = (
        bench.seconds(partial(sample, generation_config=sampling_config(number)), times=2)
        for number in (_FEW, _MANY)
    )
    seconds = (many - few) / (_MANY - _FEW)
    figures: Figures = {
        "prompts": prompts,
        "seconds_a_token": seconds,
        "times_reading_weights": seconds / reading,
    }
    if decoder is not None:
        figures |= {"is_compiled": decoder.is_compiled, "fallback": decoder.fallback}
    return figures
