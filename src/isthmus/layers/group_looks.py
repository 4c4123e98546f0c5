"""What MAN's groups made of the users, as looks: each domain's users in a plane, and how much they are of each group (Figure 4)."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from string import ascii_uppercase

import numpy as np
import torch
from torch import Tensor

from isthmus.batch import Batch
from isthmus.insight import Insight
from isthmus.layers.alignment import principal
from isthmus.layers.domain import PerDomain
from isthmus.layers.local_global import LocalGlobal
from isthmus.layers.mixed_attention import LocalPart, Mixed, through
from isthmus.layers.sequence import Left
from isthmus.schema import FIRST, PADDING

ROWS = 8192  # of a domain, among which users are looked for: with logged clicks a user has many
USERS = 1000  # of a domain that are shown; t-SNE takes seconds for so many
CLUSTERS = 10  # as many as there are colours
PERPLEXITY = 30.0
FEWEST = 4  # different users; fewer lie anywhere

SHARES = "Mean over users with events of softmax(C), eq. 12; {even:.3f} each if all groups were alike."
MISSING = " Pictures of the users need scikit-learn, which is not installed: pip install scikit-learn."
POINTS = (
    "A point is a user with events, by her pooled group representation (eq. 12): K-Means gives the colour, t-SNE the place. "
    "Clusters are each domain's own, A its largest; they are not the groups themselves, nor another domain's clusters."
)


def group_looks(rows: Iterable[tuple[str, Batch]], vectors: LocalGlobal, local: PerDomain, prototype: Tensor) -> list[Insight]:
    """The share of each group by domain, and a picture of each domain's users.

    Args:
        rows: names of domains, and rows of each; those with the most events stand for their users.
        vectors, local: of the model, in evaluation mode.
        prototype: (groups, dim).

    Returns:
        The looks; none where no user has events.
    """
    shares: list[dict[str, float | str]] = []
    pictures: list[Insight] = []
    drawn = installed()
    for name, batch in rows:
        users = one_each(batch)
        if not len(users):
            continue
        group, share = of_users(users.to(prototype.device), vectors, local, prototype)
        shares += [{"group": n, "domain": name, "share": mean} for n, mean in enumerate(share.mean(0).tolist(), 1)]
        pictures += picture(name, group, len(prototype)) if drawn else []
    if not shares:
        return []
    note = SHARES.format(even=1 / len(prototype)) + ("" if drawn else MISSING)
    return [Insight("groups", "Shares of the groups", "heatmap", shares, "group", "domain", "share", note), *pictures]


def installed() -> bool:
    """Whether scikit-learn is there."""
    return importlib.util.find_spec("sklearn") is not None


def one_each(batch: Batch) -> Batch:
    """Of each user with events the row that knows most of them, of at most ``USERS`` users; unknown ones are somebody else each."""
    assert batch.history is not None
    number, rows = torch.arange(len(batch), device=batch.user.device), len(batch)
    count = (batch.history != PADDING).sum(1)
    found, who = torch.where(batch.user < FIRST, -1 - number, batch.user).unique(return_inverse=True)
    rank = count * rows + rows - 1 - number  # among equals the first
    best = torch.zeros_like(found).scatter_reduce(0, who, rank, "amax")
    chosen = (rows - 1 - best[best >= rows] % max(rows, 1)).sort().values[:USERS]
    return batch.take(chosen, batch.domain[chosen])


def of_users(batch: Batch, vectors: LocalGlobal, local: PerDomain, prototype: Tensor) -> tuple[Tensor, Tensor]:
    """g^Au (B, dim) after the last event, and the shares softmax(C) (B, groups); of at least one row."""
    left = Left.of(batch, timed=vectors.timed)
    shared, state, event = vectors(left)
    real, gap = torch.arange(event.shape[1], device=event.device) <= left.count[:, None], left.gaps(vectors.unit)

    def run(part: LocalPart, rows: slice) -> Mixed:
        since = None if gap is None else gap[rows]
        return part.whole(event[rows], shared[rows], state[rows], real[rows], event[rows, :0], prototype, since)  # nobody asks

    mixed = through(local, batch.offsets, run)
    assert mixed.share is not None
    return mixed.group[:, 0], mixed.share[:, 0]


def picture(domain: str, group: Tensor, groups: int) -> list[Insight]:
    """One domain's users, coloured by cluster.

    Args:
        domain: its name.
        group: (N, dim) their pooled group representations.
        groups: N_g, and of the clusters, while there are colours and different users for them.

    Returns:
        One look; none of fewer than ``FEWEST`` different users.
    """
    x = (group / group.abs().max().clamp_min(1e-12)).cpu().double().round(decimals=5)  # users alike but for rounding are alike
    different = len(x.unique(dim=0))
    if different < FEWEST:
        return []
    x = (x - x.mean(0)) / x.std()
    names = _clusters(x, min(groups, CLUSTERS, different))
    points: list[dict[str, float | str]] = [
        {"first": first, "second": second, "cluster": name} for (first, second), name in zip(_plane(x).tolist(), names, strict=True)
    ]
    points.sort(key=lambda point: str(point["cluster"]))
    title = f"{domain}: {len(x):,} users by their groups"
    return [Insight(f"groups-{domain}", title, "scatter", points, "first", "second", "cluster", POINTS)]


def _clusters(x: Tensor, clusters: int) -> list[str]:
    """(N, dim) -> the name of each row's cluster, from A, the largest, on, with its size."""
    from sklearn.cluster import KMeans  # heavy, and not everybody has it

    label = KMeans(clusters, n_init=10, random_state=0).fit_predict(x.numpy())  # type: ignore[arg-type]
    size = np.bincount(label, minlength=clusters)
    place = np.argsort(np.argsort(-size, kind="stable"))
    names = [f"{ascii_uppercase[p]} ({n:,})" for p, n in zip(place.tolist(), size.tolist(), strict=True)]
    return [names[n] for n in label.tolist()]


def _plane(x: Tensor) -> np.ndarray:
    """(N, dim) -> (N, 2) by t-SNE, which starts at the principal components, so that it repeats and dim may be 1."""
    from sklearn.manifold import TSNE

    start = principal(x)
    start = 1e-4 * start / start[:, 0].std()  # small, as t-SNE wants it
    perplexity, begin = min(PERPLEXITY, (len(x) - 1) / 3), start.float().numpy()
    return TSNE(2, perplexity=perplexity, init=begin, random_state=0).fit_transform(x.float().numpy())  # type: ignore[arg-type]
