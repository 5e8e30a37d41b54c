"""Counts of dispatched operations: what :mod:`benchmarks.gpu.launches` prints."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from transformers import GenerationConfig

from benchmarks.gpu.deep_policy import Depth, make_deep_policy, make_groups
from benchmarks.gpu.launches import COLUMNS
from grpo_stream.families import FAMILIES
from grpo_stream.train.prefix.sampling.decoder import Decoder, Logits
from grpo_stream.train.prefix.ways import FORKED, PLAIN, Packed, PrefixWay

_PAD = 0
_VIEWS = frozenset(
    {
        "view", "_unsafe_view", "reshape", "t", "transpose", "permute", "slice", "select", "expand",
        "unsqueeze", "squeeze", "alias", "detach", "split", "split_with_sizes", "unbind",
        "as_strided", "unfold", "_reshape_alias", "lift_fresh",
    }
)  # fmt: skip
_SYNCS = ("_local_scalar_dense", "nonzero", "masked_select", "tolist")


class DispatchCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what is dispatched while it is entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names: Counter[str] = Counter()
        self._tolist = torch.Tensor.tolist

    def __enter__(self) -> "DispatchCounter":  # noqa: PYI034 - Self is of Python 3.11
        """A list of a CPU's tensor is made without a dispatched operation; a GPU is waited for."""

        def tolist(states: torch.Tensor) -> Any:
            self._names["tolist"] += 1
            return self._tolist(states)

        torch.Tensor.tolist = tolist  # type: ignore[method-assign, assignment]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: object) -> None:
        """Puts torch's own method back."""
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        torch.Tensor.tolist = self._tolist  # type: ignore[method-assign]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # torch's signature
        self._names[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    def note(self, name: str) -> None:
        """Counts one more of that name."""
        self._names[name] += 1

    def counts(self) -> dict[str, int]:
        """By the names of :data:`COLUMNS`."""
        names = self._names
        return {
            "operations": sum(names.values()),
            "kernels": sum(number for name, number in names.items() if name not in _VIEWS),
            "attention": sum(n for name, n in names.items() if "scaled_dot_product" in name),
            "syncs": sum(names[name] for name in _SYNCS),
        }


def count_launches(
    family: str,
    depth: Depth,
    *,
    is_ours: bool,
    num_groups: int,
    num_generations: int,
    grid: tuple[int, int],
    gradient_checkpointing: bool = False,
) -> dict[str, dict[str, int]]:
    """Counts by phase and :data:`COLUMNS`.

    Args:
        family: One of :data:`~benchmarks.gpu.deep_policy.DEPTHS`.
        depth: Layers of the policy.
        is_ours: The family's shared way; else trl's layout.
        num_groups: Of a micro-step, and of a rollout.
        num_generations: Completions of a prompt.
        grid: Patches of an image, rows and columns.
        gradient_checkpointing: Layers are computed again in backward.
    """
    model = make_deep_policy(family, depth, is_ours=is_ours)
    way = shared_way(family) if is_ours else PLAIN
    groups = make_groups(model, num_groups, num_generations, grid)
    counts = _count_rollout(model.eval(), way, groups)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    ids, mask = make_completions(groups.num_rows)

    def score() -> torch.Tensor:
        return way.score(model, groups, ids, mask, compute_entropy=False)[0]

    with torch.no_grad():
        _, counts["scoring"] = _counted(score)
    scored, counts["forward"] = _counted(score)
    _, counts["backward"] = _counted(scored.sum().backward)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, foreach=True)
    optimizer.step()  # makes the moments
    _, counts["optimizer"] = _counted(optimizer.step)
    return counts


def count_compiled(
    family: str, depth: Depth, *, num_groups: int, num_generations: int, grid: tuple[int, int]
) -> dict[str, int]:
    """Counts of a token with ``decode: compiled``, whose graph is one operation.

    With them ``breaks`` of graphs and ``compilations``, of prompts of two lengths and of
    completions that outgrow their slots. They do not depend on kernels, so none are made.

    Args:
        family: As of :func:`count_launches`, like the others.
        depth: Layers of the policy.
        num_groups: Of a rollout.
        num_generations: Completions of a prompt.
        grid: Patches of an image, rows and columns.
    """
    model = make_deep_policy(family, depth, is_ours=True).eval()
    decoder = CountedDecoder()
    counters = torch._dynamo.utils.counters  # noqa: SLF001 - where torch counts them
    torch._dynamo.reset()  # noqa: SLF001
    counters.clear()
    way = shared_way(family)

    def sample(num_tokens: int, rows: int = 0) -> dict[str, int]:
        groups = make_groups(model, num_groups, num_generations, (grid[0] + rows, grid[1]))
        config = sampling_config(num_tokens)
        with DispatchCounter() as decoder.counter:
            way.sample(model, groups, config, _PAD, decoder)
        return decoder.counter.counts()

    sample(70)
    few, many = sample(3, rows=4), sample(7, rows=4)
    if not decoder.is_compiled:
        raise RuntimeError(decoder.fallback)
    token = {name: (many[name] - few[name]) // 4 for name in COLUMNS}
    compilations = counters["stats"]["unique_graphs"]
    return token | {"breaks": sum(counters["graph_break"].values()), "compilations": compilations}


def shared_way(family: str) -> PrefixWay:
    """How a family's groups are computed.

    Args:
        family: A row of :data:`~grpo_stream.families.FAMILIES`.
    """
    return Packed("two_part", _PAD) if FAMILIES[family].is_packed else FORKED


class CountedDecoder(Decoder):
    """Compiled, and each call of the graph counted as one operation."""

    def __init__(self) -> None:
        super().__init__("compiled", backend="eager")
        self.counter = DispatchCounter()

    def bind(self, *args: Any) -> Logits:
        """Calls that the counter does not look into."""
        call = super().bind(*args)

        def counted() -> torch.Tensor:
            self.counter.note("graph")
            with _disable_current_modes():
                return call()

        return counted


def make_completions(num_rows: int, longest: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of ragged completions.

    Args:
        num_rows: How many.
        longest: In tokens.
    """
    ids = torch.randint(20, 60, (num_rows, longest), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([max(1, longest - 3 * row % longest) for row in range(num_rows)])
    return ids, (torch.arange(longest) < lengths[:, None]).long()


def sampling_config(num_tokens: int) -> GenerationConfig:
    """Samples exactly so many tokens."""
    return GenerationConfig(
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=1,
        pad_token_id=_PAD,
    )


def _count_rollout(model: Any, way: PrefixWay, groups: Any) -> dict[str, dict[str, int]]:
    """What a token takes, and all that comes before the first."""

    def sample(num_tokens: int) -> dict[str, int]:
        counts = _counted(lambda: way.sample(model, groups, sampling_config(num_tokens), _PAD))
        return counts[1]

    sample(2)
    few, many = sample(3), sample(7)
    token = {name: (many[name] - few[name]) // 4 for name in COLUMNS}
    return {"prefill": {name: few[name] - 3 * token[name] for name in COLUMNS}, "token": token}


def _counted(call: Callable[[], Any]) -> tuple[Any, dict[str, int]]:
    with DispatchCounter() as counter:
        result = call()
    return result, counter.counts()
