"""What is true in a made-up world: the latent factors, biases and weights of users and items in every domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

START = 1_600_000_000  # seconds; the first moment of every world
SPAN = 100 * 86_400  # seconds; a hundred days
GROUPS = 10  # categories, and segments
USER_BIAS, ITEM_BIAS = 0.5, 0.7  # standard deviations, in units of the utility
SKEW = 0.8  # standard deviation of the log of users' activity and items' exposure


@dataclass(frozen=True, slots=True)
class Side:
    """Users, or items.  D domains, n entities, K factors.

    Attributes:
        members: per domain, the sorted indices of the entities present in it.
        factors: (D, n, K) standard normal.
        later: (D, n, K) where the factors drift to.
        bias: (D, n).
        weight: (D, n) relative activity (users) or exposure (items).
        group: (n,) a coarse view of the common factors.
    """

    members: list[np.ndarray]
    factors: np.ndarray
    later: np.ndarray
    bias: np.ndarray
    weight: np.ndarray
    group: np.ndarray

    @classmethod
    def draw(
        cls, rng: np.random.Generator, sizes: Sequence[int], overlap: Sequence[float], relatedness: float, k: int, bias: float
    ) -> Side:
        """Entities of so many domains, the common ones alike by ``relatedness``."""
        members, n = _members(sizes, overlap)
        common = rng.standard_normal((n, k))

        def related(shared: np.ndarray, correlation: float) -> np.ndarray:
            own = rng.standard_normal((len(sizes), *shared.shape))
            return np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own

        root = np.sqrt(relatedness)
        return cls(
            members,
            factors=related(common, root),
            later=related(rng.standard_normal((n, k)), root),
            bias=bias * related(rng.standard_normal(n), relatedness),
            weight=np.exp(SKEW * related(rng.standard_normal(n), relatedness)),
            group=np.argmax(common @ rng.standard_normal((k, GROUPS)), axis=1),
        )

    def rotated(self, rotation: np.ndarray) -> Side:
        """The same with the factors of each domain turned by its (K, K) of ``rotation``."""
        turned = (np.einsum("dnk,djk->dnj", values, rotation) for values in (self.factors, self.later))
        return replace(self, factors=next(turned), later=next(turned))

    def faceted(self, rng: np.random.Generator, facets: int) -> Side:
        """Items that show one facet of their factors: any in the first domain, in each other domain the domain's own.

        The group then tells the facet shown in the first domain (for items that are not there, in their own), and within
        it a coarse view of its factors.
        """
        domains, n, k = self.factors.shape
        facet = rng.integers(0, facets, n)
        inside = np.isin(np.arange(n), self.members[0])
        for d in range(1, domains):
            mine = self.members[d]
            facet[mine[~inside[mine]]] = (d - 1) % facets
        shown = np.stack([facet, *(np.full(n, (d - 1) % facets) for d in range(1, domains))])
        mask = np.repeat(np.arange(facets), k // facets) == shown[..., None]
        views = max(1, GROUPS // facets)
        view = np.argmax((self.factors.mean(axis=0) * mask[0]) @ rng.standard_normal((k, views)), axis=1)
        return replace(self, factors=self.factors * mask * np.sqrt(facets), group=facet * views + view)


@dataclass(frozen=True, slots=True)
class Truth:
    """Both sides, how far the users' tastes move within the world's time span, and the strength of the taste."""

    users: Side
    items: Side
    drift: float
    signal: float

    def tastes(self, d: int, user: np.ndarray, moment: np.ndarray) -> np.ndarray:
        """(B, K) factors at moments in [0, 1]: they turn from the first vector towards the second, keeping their length."""
        angle = (0.5 * np.pi * self.drift * moment)[:, None]
        taste = np.cos(angle) * self.users.factors[d, user] + np.sin(angle) * self.users.later[d, user]
        return taste * (self.signal / np.sqrt(taste.shape[1]))

    def utilities(self, d: int, user: np.ndarray, time: np.ndarray) -> np.ndarray:
        """(B, items of the domain) utilities."""
        shown = self.items.members[d]
        match = self.tastes(d, user, (time - START) / SPAN) @ self.items.factors[d, shown].T
        return match + self.users.bias[d, user][:, None] + self.items.bias[d, shown]

    def utility(self, d: int, user: np.ndarray, item: np.ndarray, time: np.ndarray) -> np.ndarray:
        """(B,) utilities of pairs."""
        match = np.einsum("bk,bk->b", self.tastes(d, user, (time - START) / SPAN), self.items.factors[d, item])
        return match + self.users.bias[d, user] + self.items.bias[d, item]


def rotations(rng: np.random.Generator, domains: int, k: int) -> np.ndarray:
    """(D, K, K) orthogonal matrices: the identity for the first domain, random ones for the others."""
    turns = [np.linalg.qr(rng.standard_normal((k, k)))[0] for _ in range(domains - 1)]
    return np.stack([np.eye(k), *turns])


def _members(sizes: Sequence[int], overlap: Sequence[float]) -> tuple[list[np.ndarray], int]:
    """Per domain the indices of its entities: a beginning of the common pool, and a block of its own; and how many there are."""
    common = [round(share * size) for size, share in zip(sizes, overlap, strict=True)]
    total, members = max(common), []
    for size, shared in zip(sizes, common, strict=True):
        members.append(np.concatenate([np.arange(shared), np.arange(total, total + size - shared)]))
        total += size - shared
    return members, total
