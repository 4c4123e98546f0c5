"""What layers ask where a graph is drawn (``torch.export``): numbers of rows and events are symbols then, and nothing can be counted."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def drawing() -> bool:
    """Whether a graph is being drawn."""
    exporting = getattr(torch.compiler, "is_exporting", None)  # older versions of torch draw none
    return exporting is not None and exporting()


def known(condition: bool) -> bool:
    """The condition; where a graph is drawn whether it holds whatever the symbols stand for."""
    if not drawing():
        return condition
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)


def alone(offsets: Sequence[int]) -> int | None:
    """The domain whose rows are all there are, where a graph is drawn; None otherwise, and where that is not known."""
    if not drawing():
        return None
    some = [d for d, (start, end) in enumerate(itertools.pairwise(offsets)) if not known(start == end)]
    return some[0] if len(some) == 1 else None


def longest(count: Tensor, room: int) -> int:
    """The largest of the counts (n,), 0 of none; where a graph is drawn as many as there is room for."""
    if drawing():
        return room
    return int(count.max()) if len(count) else 0


def all_of(offsets: Sequence[int], n: int) -> tuple[int, ...] | None:
    """Bounds by domain of n things that belong to rows with these offsets, where ``alone`` knows whose they are; else None."""
    only = alone(offsets)
    return None if only is None else tuple(n if d > only else 0 for d in range(len(offsets)))


def recurrence(step: Callable[..., tuple[Tensor, ...]], state: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> Tensor:
    """The states of a recurrence, of which a graph holds one step however many there are.

    Args:
        step: states and one slice of each input -> new states.
        state: before the first step.
        inputs: (T, ...) each.

    Returns:
        (T, ...), the first of the states after each step.
    """
    from torch._higher_order_ops.scan import scan

    def one(state: tuple[Tensor, ...], given: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor]:
        state = step(*state, *given)
        return state, state[0].clone()

    return scan(one, state, inputs)[1]
