"""``IdRows``: which rows of a table stand for an id."""

from __future__ import annotations

import torch
from torch import Tensor

from isthmus.schema import FIRST, PADDING, Entity


class IdRows:
    """Codes of an entity -> rows of its table, whose sum is the id's vector.

    Usually each trained id has a row of its own.  Where ids are hashed (``isthmus.schema.HashedIds``), the most frequent ones still have,
    and a rarer one has the sum of two rows that it shares with others, but with no other id both of them::

        v(code) = W[own + r] + W[own + m + q],    q, r = divmod(code - own, m)

    Shi, Mudigere, Naumov, Yang: Compositional Embeddings Using Complementary Partitions for Memory-Efficient Recommendation Systems,
    KDD 2020 (the quotient-remainder trick, with the sum as its operation).

    Args:
        entity: with its sizes.

    Attributes:
        each: rows that stand for an id, 1 or 2; the second one may be padding.
        total: rows of all ids together.
    """

    def __init__(self, entity: Entity) -> None:
        self.hashed, trained = entity.hashed, max(entity.trained, FIRST)
        self.each = 1 if self.hashed is None else 2
        self.total = trained if self.hashed is None else self.hashed.rows + trained - self.hashed.ids

    def __call__(self, codes: Tensor) -> Tensor:
        """Codes of trained ids (...) -> (..., each) rows."""
        if self.hashed is None:
            return codes[..., None]
        own, ids, m = self.hashed.own, self.hashed.ids, self.hashed.remainders
        place, rare = codes - own, (codes >= own) & (codes < ids)
        alone = torch.where(codes < ids, codes, codes - ids + self.hashed.rows)
        first = torch.where(rare, own + place % m, alone)
        second = torch.where(rare, own + m + place // m, PADDING)
        return torch.stack([first, second], -1)
