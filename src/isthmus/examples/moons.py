"""Twin moons, and the same moons turned by 35 degrees: what domain adversarial training does, on points one can see.

Section 4.1 of the DADIN paper (``isthmus.models.dadin``).  300 points of a source domain and 150 of 300 of a target domain train;
networks are judged on all 300 of the target.  As clicks are, the labels that train are noisy: each is the other one with probability
``FLIPPED``; judged is against the true ones.  (With exact labels 150 points say all there is to say, and nothing is to be gained.)

Four networks, of nearly as many weights:

- ``plain``: a tower of three layers and a label predictor for each domain; nothing is shared.
- ``shared``: the first layer is each domain's own (as embeddings are), all others and the label predictor are one; h = h_spec + h_DA.
- ``adversarial``: the same, and classifiers that must not tell domains apart from h_DA: DADIN's Loss2 and Loss3.
- ``shuffled``: the same, but the classifiers are told domains drawn by lot: what is gained here too is not owed to alignment.

    python -m isthmus.examples.moons -o runs/moons

prints accuracies over seeds and draws the paper's Figures 4 to 6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from isthmus.errors import ConfigError
from isthmus.layers.adversarial import DomainClassifier, reverse, warm_up
from isthmus.layers.domain import DomainLinear, DomainMLP
from isthmus.layers.mlp import MLP

POINTS, TURN, NOISE, FLIPPED = 300, 35.0, 0.1, 0.2
SOURCE, TARGET = 0, 1
WAYS = ("plain", "shared", "shuffled", "adversarial")
WIDTH, STEPS, RATE = 16, 300, 1e-2
WEIGHT = 0.5  # of Loss2 and Loss3; of .1, .2, .3, .5 and 1 the best on other seeds than those that are shown
MOMENTUM = (0.0, 0.99)  # none: two players with momentum (.9) run in circles, and a classifier is as often wrong as right by luck
FASTER = 5.0  # the rate of the classifiers of domains: they must keep up with what they learn from


@dataclass(frozen=True)
class Moons:
    """Points of both domains, ordered by domain.

    Attributes:
        x: (2 * POINTS, 2) float32.
        truth: (2 * POINTS,) float32, the moon: 0 or 1.
        label: (2 * POINTS,) float32, what training sees.
        trains: (2 * POINTS,) bool: all of the source, half of the target.
    """

    x: Tensor
    truth: Tensor
    label: Tensor
    trains: Tensor

    @property
    def domain(self) -> Tensor:
        """(2 * POINTS,) int64."""
        return torch.tensor([SOURCE, TARGET]).repeat_interleave(POINTS)


def make_moons(seed: int = 0, *, noise: float = NOISE, flipped: float = FLIPPED) -> Moons:
    """Two half circles that reach into each other, and others like them turned about their common centre.

    Args:
        seed: of the points.
        noise: standard deviation of a point's coordinates.
        flipped: share of labels that are the other one.
    """
    rng = np.random.default_rng(seed)
    points, truths = [], []
    for turn in (0.0, math.radians(TURN)):
        truth = rng.permutation(np.arange(POINTS) % 2)
        angle = rng.uniform(0, math.pi, POINTS)
        point = np.stack([np.cos(angle), np.sin(angle)], 1)
        point[truth == 1] = np.array([1.0, 0.5]) - point[truth == 1]
        point = point - np.array([0.5, 0.25]) + noise * rng.standard_normal(point.shape)
        turned = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        points.append(point @ turned)
        truths.append(truth)
    truth = np.concatenate(truths)
    label = np.where(rng.random(2 * POINTS) < flipped, 1 - truth, truth)
    trains = np.ones(2 * POINTS, bool)
    trains[POINTS + rng.permutation(POINTS)[: POINTS // 2]] = False
    x, truth, label = (torch.tensor(values, dtype=torch.float32) for values in (np.concatenate(points), truth, label))
    return Moons(x, truth, label, torch.tensor(trains))


class Plain(nn.Module):
    """A tower of three layers and a label predictor for each domain."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = DomainMLP(2, 2, [WIDTH] * 3, out=1)

    def forward(self, x: Tensor, offsets: Sequence[int]) -> Tensor:
        """(N, 2), rows ordered by domain -> (N,) logits."""
        return self.towers(x, offsets).squeeze(1)


class Shared(nn.Module):
    """h_spec from a first layer of each domain's own and two shared ones; h_DA; one label predictor; classifiers of domains."""

    def __init__(self) -> None:
        super().__init__()
        self.first = DomainLinear(2, 2, WIDTH)
        self.rest = MLP(WIDTH, [WIDTH], out=WIDTH)
        self.agnostic = MLP(WIDTH, [WIDTH], out=WIDTH)
        self.predictor = nn.Linear(WIDTH, 1)
        self.whole, self.negatives, self.positives = (DomainClassifier(2, WIDTH, FASTER) for _ in range(3))

    def features(self, x: Tensor, offsets: Sequence[int]) -> tuple[Tensor, Tensor]:
        """h_spec and h_DA, (N, WIDTH)."""
        specific = self.rest(self.first(x, offsets).relu())
        return specific, self.agnostic(specific)

    def forward(self, x: Tensor, offsets: Sequence[int]) -> Tensor:
        """(N, 2), rows ordered by domain -> (N,) logits."""
        specific, agnostic = self.features(x, offsets)
        return self.predictor(specific + agnostic).squeeze(1)

    def confusion(self, x: Tensor, offsets: Sequence[int], domain: Tensor, strength: float) -> Tensor:
        """Loss2 + Loss3 with alpha = 1/2 (``DADIN``, bounded; T is one half: the moons are as large as each other)."""
        specific, agnostic = self.features(x, offsets)
        y = self.predictor(specific + agnostic).squeeze(1).detach().sigmoid()
        h, positive = F.layer_norm(agnostic, agnostic.shape[1:]), (y >= 0.5).to(x.dtype)
        zero = self.negatives.loss(reverse((1 - y)[:, None] * h, strength), domain, 1 - positive)
        one = self.positives.loss(reverse(y[:, None] * h, strength), domain, positive)
        return self.whole.loss(reverse(h, strength), domain) + 0.5 * (zero + one)

    def domains(self, x: Tensor, offsets: Sequence[int]) -> Tensor:
        """(N,) logits of being the target, as the global classifier of domains has them."""
        h = self.features(x, offsets)[1]
        return self.whole(F.layer_norm(h, h.shape[1:])).diff(dim=1).squeeze(1)


def train(way: str, moons: Moons, seed: int = 0, *, every: bool = False) -> Plain | Shared:
    """All training points at every step; Adam, whose rate falls to zero.

    Args:
        way: see ``WAYS``.
        moons: the points.
        seed: of the weights, and of the lot.
        every: on all points of both domains.

    Raises:
        ConfigError: no such way.
    """
    if way not in WAYS:
        raise ConfigError(f"way {way!r}", f"one of {WAYS}", "choose one of them")
    torch.manual_seed(seed)
    net = Plain() if way == "plain" else Shared()
    rows = torch.ones_like(moons.trains) if every else moons.trains
    x, label, domain = moons.x[rows], moons.label[rows], moons.domain[rows]
    offsets = (0, int((domain == SOURCE).sum()), len(x))
    if way == "shuffled":
        domain = domain[torch.randperm(len(domain))]

    def loss(step: int) -> Tensor:
        found = F.binary_cross_entropy_with_logits(net(x, offsets), label)
        if isinstance(net, Shared) and way != "shared":
            found = found + WEIGHT * net.confusion(x, offsets, domain, warm_up(step, STEPS))
        return found

    _learn(net, loss)
    return net


def train_to_tell_domains(moons: Moons, seed: int = 0) -> MLP:
    """A network of the same width and depth that learns which domain a point is of (Figure 5)."""
    torch.manual_seed(seed)
    net = MLP(2, [WIDTH] * 4, out=1)
    _learn(net, lambda _: F.binary_cross_entropy_with_logits(net(moons.x).squeeze(1), moons.domain.float()))
    return net


def _learn(net: nn.Module, loss: Callable[[int], Tensor]) -> None:
    """Adam, whose rate falls to zero, on the loss of each step."""
    optimiser = torch.optim.Adam(net.parameters(), RATE, betas=MOMENTUM)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / STEPS)
    for step in range(STEPS):
        optimiser.zero_grad()
        loss(step).backward()
        optimiser.step()
        schedule.step()
    net.eval()


def right(logit: Tensor, truth: Tensor) -> float:
    """Share of points on their side of 0."""
    return float(((logit > 0) == (truth > 0.5)).float().mean())


def experiment(seeds: Sequence[int], *, noise: float = NOISE, flipped: float = FLIPPED) -> pl.DataFrame:
    """Trains everything for every seed.

    Args:
        seeds: of points and weights.
        noise, flipped: see ``make_moons``.

    Returns:
        Columns seed, way, accuracy, held_out (on the target's points that did not train); and domains: how well the network
        tells domains (of networks trained on all points; of ``plain`` the one that learns nothing else), null for ``shared``.
    """
    rows = []
    for seed in seeds:
        moons = make_moons(seed, noise=noise, flipped=flipped)
        unseen, truth = ~moons.trains[POINTS:], moons.truth[POINTS:]
        for way in WAYS:
            logit = logits(train(way, moons, seed), moons)[POINTS:]
            rows.append((seed, way, right(logit, truth), right(logit[unseen], truth[unseen]), _tells_domains(way, moons, seed)))
    return pl.DataFrame(rows, ["seed", "way", "accuracy", "held_out", "domains"], orient="row")


@torch.no_grad()
def logits(net: Plain | Shared, moons: Moons) -> Tensor:
    """(2 * POINTS,)."""
    return net(moons.x, (0, POINTS, 2 * POINTS))


def _tells_domains(way: str, moons: Moons, seed: int) -> float | None:
    """Accuracy of a network trained on all points."""
    if way == "shared":
        return None
    if way == "plain":
        plain = train_to_tell_domains(moons, seed)
        with torch.no_grad():
            return right(plain(moons.x).squeeze(1), moons.domain)
    net = train(way, moons, seed, every=True)
    assert isinstance(net, Shared)
    with torch.no_grad():
        return right(net.domains(moons.x, (0, POINTS, 2 * POINTS)), moons.domain)


def summary(frame: pl.DataFrame) -> pl.DataFrame:
    """Means over seeds of what ``experiment`` gives.

    Returns:
        A row for each way: accuracy, held_out, domains, and ``over plain`` with the half width of its 95 % interval over seeds
        (normal, seeds paired).
    """
    plain = frame.filter(way="plain").select("seed", plain="accuracy")
    gain = pl.col("accuracy") - pl.col("plain")
    means = frame.join(plain, on="seed", maintain_order="left").group_by("way", maintain_order=True)
    half = 1.96 * gain.std() / pl.len().sqrt()
    return means.agg(pl.col("accuracy", "held_out", "domains").mean(), gain.mean().alias("over plain"), half.alias("half width"))


def main(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the figures and the table.")] = None,
    seeds: Annotated[int, typer.Option(min=2, help="Worlds, and trainings of each kind.")] = 20,
    noise: Annotated[float, typer.Option(min=0, help="Standard deviation of a point's coordinates.")] = NOISE,
    flipped: Annotated[float, typer.Option(min=0, max=1, help="Share of labels that are the other one.")] = FLIPPED,
) -> None:
    """Domain adversarial training on twin moons: accuracies in the target, over seeds, and the figures of the first seed."""
    from isthmus import storage
    from isthmus.examples.moons_figures import draw

    torch.set_num_threads(1)  # the networks are tiny
    frame = experiment(range(seeds), noise=noise, flipped=flipped)
    with pl.Config(tbl_formatting="ASCII_MARKDOWN", tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True, float_precision=4):
        typer.echo(str(summary(frame)))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        with storage.whole_file(out / "moons.parquet") as path:
            frame.write_parquet(path)
        for name, figure in draw(make_moons(0, noise=noise, flipped=flipped)).items():
            with storage.whole_file(out / f"{name}.svg") as path:
                path.write_text(figure, encoding="utf-8")
            typer.echo(str(out / f"{name}.svg"))


if __name__ == "__main__":
    typer.run(main)
