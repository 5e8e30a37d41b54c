"""Work that some ranks do for all: what stops one of them stops all, with the same error."""

from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate.utils import gather_object

from grpo_stream.errors import GrpoStreamError
from grpo_stream.train.cluster.node_checks import node_name

T = TypeVar("T")


def together(work: Callable[[], T], *, does: bool) -> list[T | None]:
    """What ``work`` returns on each rank, None where a rank does not do it. Every rank must call.

    Args:
        work: May raise errors of this project.
        does: Whether this rank does it.

    Raises:
        GrpoStreamError: that of the first rank that failed, on every rank.
    """
    done: T | None = None
    failed: GrpoStreamError | None = None
    try:
        done = work() if does else None
    except GrpoStreamError as error:
        failed = error
    told: list[tuple[T | None, GrpoStreamError | None]] = gather_object([(done, failed)])
    for _, its_error in told:
        if its_error is not None:
            raise its_error
    return [result for result, _ in told]


def once_per_node(work: Callable[[], T]) -> T:
    """What ``work`` returns on the first rank of this node, on all of its ranks.

    Collective, once ranks have joined; what is sent stays within the node, over gloo. A rank that
    is alone on its node, or has not joined others, works by itself.

    Args:
        work: May raise errors of this project, which then are raised on all ranks of the node.
    """
    if not torch.distributed.is_initialized():
        return work()
    rank = torch.distributed.get_rank()
    on_node = [other for other, name in gather_object([(rank, node_name())]) if name == node_name()]
    if len(on_node) == 1:
        return work()
    group = torch.distributed.new_group(on_node, backend="gloo", use_local_synchronization=True)
    sent: list[tuple[T] | GrpoStreamError | None] = [None]
    if rank == on_node[0]:
        try:
            sent = [(work(),)]
        except GrpoStreamError as error:
            sent = [error]
    # The group stays: torch would name the next one like it, and a rank could find the addresses of
    # this one in the store and wait for ever (torch 2.13, ``_hash_ranks_to_str``).
    torch.distributed.broadcast_object_list(sent, on_node[0], group)
    (done,) = sent
    if not isinstance(done, tuple):
        raise done or RuntimeError("the node's first rank sent nothing")
    return done[0]
