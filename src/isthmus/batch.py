"""``Needs`` -> ``Batch`` -> ``Output``: what a model asks for, gets, and gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Needs:
    """What a model reads beyond user, item and domain.  A test checks that it is exact.

    Attributes:
        history: the row's own domain's earlier events of the user.
        cross_history: the user's earlier events in the OTHER domains, merged in order of time.
        merged_history: the user's earlier events in ALL domains, merged in order of time.
        behaviour: behaviour types along with the histories asked for.
        history_time: times along with the histories asked for, and the row's own time.
        history_label: ratings along with the histories asked for (None where the data have none: events of a history are positives).
        context: the event's context fields.
        whole_history: histories are not cut at the configured length (closed-form models).
    """

    history: bool = False
    cross_history: bool = False
    merged_history: bool = False
    behaviour: bool = False
    history_time: bool = False
    history_label: bool = False
    context: bool = False
    whole_history: bool = False

    @property
    def histories(self) -> dict[str, tuple[str, ...]]:
        """The histories asked for, by the name of their items in a ``Batch``, each with the columns read of its events."""
        wanted = {"time": self.history_time, "behaviour": self.behaviour, "label": self.history_label}
        beside = tuple(name for name, asked in wanted.items() if asked)
        return {
            **({"history": ("item", *beside)} if self.history else {}),
            **({"cross_history": ("item", "domain", *beside)} if self.cross_history else {}),
            **({"merged_history": ("item", "domain")} if self.merged_history else {}),
        }


def history_field(history: str, column: str) -> str:
    """The field of a ``Batch`` that holds a column of one of its histories, such as ``cross_time`` of ``cross_history``."""
    return history if column == "item" else f"{history.removesuffix('_history')}_{column}"


@dataclass(slots=True)
class Pool:
    """Candidates that all rows of a domain share: M of them, ordered by domain.

    Attributes:
        item: (M,) int64 codes.
        domain: (M,) int64, ascending.
        offsets: D + 1 Python ints: domain d has ``item[offsets[d]:offsets[d + 1]]``.
        own: (B,) int64 where each row's positive stands in the pool; None: not in it, but beside it.
        log_q: (M,) float32 log of how often the item is expected in its domain's pool, besides the row's own
            positive; None: a pool is its domain's whole catalogue, in ascending order.
    """

    item: Tensor
    domain: Tensor
    offsets: tuple[int, ...]
    own: Tensor | None
    log_q: Tensor | None = None


@dataclass(slots=True)
class Targets:
    """What came next, at many places of the batch's histories: N of them, ordered by domain.

    Attributes:
        slot: (N,) int64 places in (B * L): the event that was the last one known.  Where the slot is padding, nothing was.
        item: (N,) int64 codes of the items that came next.
        domain: (N,) int64, ascending.
        offsets: D + 1 Python ints: domain d has the targets ``offsets[d]:offsets[d + 1]``.
        negative: (N, n) int64 codes of each target's own negatives, or None.
        log_q: (N, 1 + n) float32 log-probability of the target and its negatives under their sampler, or None.
        weight: (N,) float32, or None.
    """

    slot: Tensor
    item: Tensor
    domain: Tensor
    offsets: tuple[int, ...]
    negative: Tensor | None = None
    log_q: Tensor | None = None
    weight: Tensor | None = None


@dataclass(slots=True)
class Batch:
    """One batch.  Rows are ordered by domain: domain d has rows ``offsets[d]:offsets[d+1]``.

    Shapes: B rows, C candidate items per row, L history events, D domains.

    Attributes:
        user: (B,) int64 user codes.
        item: (B, C) int64 item codes; C = 1 for logged events, 1 + n with negatives (the positive first).
        domain: (B,) int64 domain index, ascending.
        offsets: D + 1 Python ints, so that slicing by domain never waits for a device.
        label: (B, C) float32, or None when scoring.
        weight: (B,) float32 row weights, or None.
        log_q: (B, C) float32 log-probability of each candidate under its sampler, or None.  A constant
            per row may be missing: it cancels in a softmax over the row.
        pool: candidates shared by the rows of a domain (then C = 1), or by its targets, or None.
        target: what came next at many places of the histories (then C = 0, and the rows are windows of sequences), or None.
        epoch: of training, from 0; what a model does with it is its own.
        share: where several processes train on one batch, the part of it (of its rows' or targets' weight) that this is.
        history: (B, L) int64 item codes of the row's own domain, right-aligned (most recent last), 0 pads.
        history_time, history_behaviour: (B, L) int64 alike; history_label: (B, L) float32 ratings, 0 at padding.
        cross_history: (B, L) int64 item codes of the other domains, right-aligned, 0 pads.
        cross_domain, cross_time, cross_behaviour, cross_label: (B, L) alike; cross_domain is -1 at padding.
        merged_history, merged_domain: (B, L) int64 item codes of all domains and their domains alike.
        time: (B,) int64, the moment predicted, or None.
        context: per field (B,) for user-side or event-wide values, int64 codes or float32 numbers;
            multi-valued fields are (B, M) padded with 0.
    """

    user: Tensor
    item: Tensor
    domain: Tensor
    offsets: tuple[int, ...]
    label: Tensor | None = None
    weight: Tensor | None = None
    log_q: Tensor | None = None
    pool: Pool | None = None
    target: Targets | None = None
    epoch: int = 0
    share: float = 1.0
    history: Tensor | None = None
    history_time: Tensor | None = None
    history_behaviour: Tensor | None = None
    history_label: Tensor | None = None
    cross_history: Tensor | None = None
    cross_domain: Tensor | None = None
    cross_time: Tensor | None = None
    cross_behaviour: Tensor | None = None
    cross_label: Tensor | None = None
    merged_history: Tensor | None = None
    merged_domain: Tensor | None = None
    time: Tensor | None = None
    context: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def __len__(self) -> int:
        return self.user.shape[0]

    @property
    def item_offsets(self) -> tuple[int, ...]:
        """Offsets by domain when (B, C) is flattened to (B * C,)."""
        width = self.item.shape[1]
        return tuple(o * width for o in self.offsets)

    def take(self, rows: Tensor, domain: Tensor) -> Batch:
        """Some rows, as if in other domains; without labels and shared candidates.

        Args:
            rows: (b,) positions.
            domain: (b,) the domain index that each gets, ascending.
        """

        def cut(value: Any) -> Any:
            if isinstance(value, dict):
                return {k: cut(v) for k, v in cast("dict[str, Tensor]", value).items()}
            return value[rows] if isinstance(value, Tensor) else value

        bounds = torch.arange(len(self.offsets), device=domain.device)
        offsets = tuple(int(bound) for bound in torch.searchsorted(domain, bounds))
        kept = {f.name: cut(getattr(self, f.name)) for f in fields(self)}
        return replace(self, **{**kept, "domain": domain, "offsets": offsets, "label": None, "log_q": None, "pool": None, "target": None})

    def to(self, device: Any, non_blocking: bool = True) -> Batch:
        """The same batch on another device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pinned(self) -> Batch:
        """The same batch in memory from which a GPU takes it by itself, while this process goes on.

        Raises:
            RuntimeError: torch finds no GPU.
        """
        return self.map(Tensor.pin_memory)

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with every tensor changed."""

        def changed(value: Any) -> Any:
            if isinstance(value, Tensor):
                return change(value)
            if isinstance(value, (Pool, Targets)):
                return replace(value, **{f.name: changed(getattr(value, f.name)) for f in fields(value)})
            if isinstance(value, dict):
                return {k: changed(v) for k, v in cast("dict[str, Tensor]", value).items()}
            return value

        return replace(self, **{f.name: changed(getattr(self, f.name)) for f in fields(self)})


@dataclass(slots=True)
class Output:
    """What ``forward`` returns.

    Attributes:
        logit: (B, C); no sigmoid inside.
        extra: named scalar loss terms, present in training only; the loop adds and logs them by name.
    """

    logit: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
