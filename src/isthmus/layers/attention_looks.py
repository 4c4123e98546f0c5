"""Attention over a user's events, as looks: by source domain, by behaviour type, and event by event."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from isthmus.insight import Insight
from isthmus.layers.behaviours import Events
from isthmus.layers.dacdr import event_shares, mass_by_kind
from isthmus.schema import Schema

if TYPE_CHECKING:
    from isthmus.data.vocabulary import Vocabulary

Cells = list[dict[str, float | str]]

TOP = 5  # events of a target that are shown
TYPES = "Each behaviour type has an attention of its own, and counts as much as the others a user has."
EVEN = "In brackets: if all events of a type had the same weight."
LIFT = "1: as much as if all events of a behaviour type had the same weight."
REPEATS = "The same item more than once in a domain, with the same type, counts together; without a number: not read for that target."


class AttentionLooks:
    """Gathers attention target by target.

    Args:
        schema: of an encoded data set.

    Attributes:
        mass, by_type, by_event: rows of the looks.
    """

    def __init__(self, schema: Schema) -> None:
        self.names, self.types = schema.domain_names, schema.behaviours or ("",)
        self.mass: Cells = []
        self.by_type: Cells = []
        self.by_event: Cells = []

    def add(self, target: str, events: Events, weights: Tensor) -> None:
        """One target's attention by source and behaviour type, the mean over rows with events.

        Args:
            target: name of the domain that asks.
            events, weights: see ``mass_by_kind``.
        """
        got = mass_by_kind(events, weights, len(self.names), len(self.types))  # (2, sources, types)
        for source, of in enumerate(self.names):
            if got[1, source].any():
                attention, even = got[:, source].sum(1).tolist()
                self.mass.append({"source": of, "target": target, "attention": attention, "even": even, "lift": attention / even})
                self.by_type += [
                    {"source, behaviour": f"{of}, {name}", "target": target, "attention": attention, "even": even}
                    for name, (attention, even) in zip(self.types, got[:, source].T.tolist(), strict=True)
                ]

    def add_events(self, target: str, events: Events, weights: Tensor, items: Vocabulary) -> None:
        """One target's attention by item, for the events of a single row."""
        kind, share = event_shares(events, weights, len(self.types))
        key, at = torch.stack([events.item, events.domain, kind], 1).unique(dim=0, return_inverse=True)
        total = share.new_zeros(2, len(key)).index_add(1, at, share)
        ids = items.decode(key[:, 0].cpu().numpy())
        for item, (_, domain, of), (attention, even) in zip(ids, key.tolist(), total.T.tolist(), strict=True):
            where = ", ".join(filter(None, (self.names[domain], self.types[of])))
            self.by_event.append({"event": f"{item} ({where})", "target": target, "attention": attention, "even": even})

    def averages(self) -> list[Insight]:
        """The looks at what many rows have in common."""
        if not self.mass:
            return []
        note = f"Mean over users with events. {TYPES} {EVEN}"
        lift = Insight("attention_lift", "Attention over even attention", "heatmap", self.mass, "source", "target", "lift", LIFT)
        mass, *by_type = self._masses(note)
        return [mass, lift, *by_type]

    def of_one(self) -> list[Insight]:
        """The looks at a single user; none where no target found an event."""
        if not self.mass:
            return []
        title, note = "Her events with the most attention", f"The first {TOP} for each target. {REPEATS} {EVEN}"
        events = Insight("attention_events", title, "heatmap", self._first(), "target", "event", "attention", note, "even")
        return [*self._masses(f"{TYPES} {EVEN}"), events]

    def _masses(self, note: str) -> list[Insight]:
        title, drawn = "Attention by source domain", ("target", "attention", note, "even")
        looks = [Insight("attention", title, "heatmap", self.mass, "source", *drawn)]
        if len(self.types) > 1:
            looks.append(Insight("attention_behaviour", f"{title} and behaviour", "heatmap", self.by_type, "source, behaviour", *drawn))
        return looks

    def _first(self) -> Cells:
        """The rows of every event that is among the first of some target, the most attended first."""
        ranked = sorted(self.by_event, key=lambda row: -float(row["attention"]))
        left = dict.fromkeys((str(row["target"]) for row in ranked), TOP)
        chosen: dict[float | str, None] = {}
        for row in ranked:
            if left[str(row["target"])]:
                left[str(row["target"])] -= 1
                chosen[row["event"]] = None
        place = {event: number for number, event in enumerate(chosen)}
        kept = [row for row in self.by_event if row["event"] in place]  # targets as they were added, so that columns keep their order
        return sorted(kept, key=lambda row: place[row["event"]])
