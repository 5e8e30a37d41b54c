"""A device, and a policy with random weights: what the blocks of ``gpu_check`` work on."""

import copy
import gc
import json
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.deep_policy import DEPTHS, Depth, build_policy, deep_config, make_groups
from benchmarks.gpu.expectations import FIGURE, Figures
from benchmarks.gpu.launch_counts import make_completions
from grpo_stream.train.batches.groups import PromptGroups
from grpo_stream.train.prefix.ways import Packed, PrefixWay
from grpo_stream.train.setup.memory.model_sizes import find_config


class Bench:
    """A device and the policy's size.

    Args:
        model: ``3B``; ``deep``, of its depth and small widths; ``small``, of few layers, too; or
            ``auto``.
    """

    def __init__(self, model: str) -> None:
        self.is_cuda = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.is_cuda else "cpu")
        if model == "auto":
            model = "3B" if self.is_cuda else "small"
        depth = {"small": Depth(2, 3, (1,)), "deep": DEPTHS["qwen2_5_vl"]}.get(model)
        self.config: Any = find_config(model) if depth is None else deep_config("qwen2_5_vl", depth)
        self.grid = (52, 92) if depth is None else (12, 20)
        self.num_tokens = 64 if depth is None else 12
        """Of the longest completion."""
        self.num_generations = 8
        self.packed: PrefixWay = Packed("two_part", 0)
        self.figures: Figures = {}
        """What was found, in order."""

    def note(self, name: str, figure: Any) -> None:
        """Keeps a figure and prints it: it stays when the process is ended later."""
        self.figures[name] = figure
        print(f"{FIGURE}{json.dumps({name: figure})}", flush=True)

    def attempt(self, name: str, measure: Callable[[], Any]) -> None:
        """Notes what is measured, or why it cannot be; what comes after it goes on."""
        try:
            figure = measure()
        except Exception as error:  # noqa: BLE001 - out of memory, a kernel that is missing, ...
            line = str(error).strip().partition("\n")[0]
            figure = {"error": f"{type(error).__name__}: {line}"}
        self.note(name, figure)
        # Engines are in cycles, and the next one's memory is measured.
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()

    def policy(self, dtype: torch.dtype = torch.bfloat16, *, is_ours: bool = True) -> Any:
        """A policy with random weights, the same each time and in each type: those of bfloat16."""
        # A model writes into its configuration how it attends.
        config = copy.deepcopy(self.config)
        return build_policy(config, self.device, torch.bfloat16, is_ours=is_ours).to(dtype)

    def seconds(self, call: Callable[[], Any], times: int = 3) -> float:
        """The shortest of some calls, after one that is not timed."""
        call()
        found = []
        for _ in range(times):
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            found.append(time.perf_counter() - start)
        return min(found)

    def wait(self) -> None:
        """For all that the device has been given."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def set_checkpointing(self, model: Any, *, is_wanted: bool) -> None:
        """Whether layers are computed again in backward."""
        if is_wanted:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()

    def groups(self, model: Any, num_groups: int) -> PromptGroups:
        """Prompts of one image each."""
        return make_groups(model, num_groups, self.num_generations, self.grid)

    def score(self, model: Any, way: PrefixWay, num_groups: int = 1) -> torch.Tensor:
        """Log-probabilities of completions; ``model`` may be DeepSpeed's engine."""
        groups = self.groups(getattr(model, "module", model), num_groups)
        rows = make_completions(groups.num_rows, self.num_tokens)
        ids, mask = (one.to(self.device) for one in rows)
        return way.score(model, groups, ids, mask, compute_entropy=False)[0]

    def train_step(self, model: Any, num_groups: int = 1) -> None:
        """Forward and backward of packed groups."""
        self.score(model, self.packed, num_groups).sum().backward()  # type: ignore[no-untyped-call]
