"""The moons: where the points lie, who trains, and what the networks' parts see."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from isthmus.errors import ConfigError
from isthmus.examples import moons as m

OFFSETS = (0, m.POINTS, 2 * m.POINTS)


def test_without_noise_all_points_lie_on_two_arcs_and_the_targets_are_turned() -> None:
    moons = m.make_moons(3, noise=0.0, flipped=0.0)
    turn = math.radians(35)
    back = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    x = np.concatenate([moons.x[: m.POINTS].numpy(), moons.x[m.POINTS :].numpy() @ back]) + np.array([0.5, 0.25])
    first, second = moons.truth.numpy() == 0, moons.truth.numpy() == 1
    assert np.linalg.norm(x[first], axis=1) == pytest.approx(1, abs=1e-5)
    assert x[first][:, 1].min() > -1e-5
    assert np.linalg.norm(x[second] - [1, 0.5], axis=1) == pytest.approx(1, abs=1e-5)
    assert x[second][:, 1].max() < 0.5 + 1e-5


def test_numbers_of_points_labels_and_who_trains() -> None:
    moons = m.make_moons(0)
    for domain in (m.SOURCE, m.TARGET):
        assert moons.truth[moons.domain == domain].sum() == m.POINTS / 2
    assert [int(moons.trains[moons.domain == d].sum()) for d in (m.SOURCE, m.TARGET)] == [300, 150]
    assert (moons.label != moons.truth).float().mean().item() == pytest.approx(m.FLIPPED, abs=0.05)
    assert m.make_moons(0, flipped=0.0).label.equal(moons.truth), "the same points, whatever is flipped"
    assert not m.make_moons(1).x.equal(moons.x)


def test_networks_are_of_like_size_and_the_adversary_alone_is_what_ways_differ_in() -> None:
    sizes = [sum(p.numel() for p in net.parameters()) for net in (m.Plain(), m.Shared())]
    assert max(sizes) / min(sizes) < 1.1
    moons = m.make_moons(0)
    with pytest.raises(ConfigError, match=r"(?s)way 'other'.*plain"):
        m.train("other", moons)
    nets = {way: m.train(way, moons, 5) for way in m.WAYS}
    again = m.train("adversarial", moons, 5)
    assert m.logits(nets["adversarial"], moons).equal(m.logits(again, moons)), "repeats"
    found = [m.logits(net, moons) for net in nets.values()]
    assert all(not a.equal(b) for i, a in enumerate(found) for b in found[:i])


def test_classifiers_learn_domains_and_features_are_pushed_the_other_way() -> None:
    torch.manual_seed(0)
    net, moons = m.Shared(), m.make_moons(0)

    def gradients(strength: float) -> tuple[torch.Tensor, torch.Tensor]:
        net.zero_grad()
        net.confusion(moons.x, OFFSETS, moons.domain, strength).backward()
        return net.whole.weight.grad.clone(), net.first.weight.grad.clone()  # type: ignore[union-attr]

    (classifier, feature), (same, opposite) = gradients(1.0), gradients(-1.0)
    assert classifier.equal(same)
    assert feature.abs().max() > 0
    torch.testing.assert_close(opposite, -feature)
    assert net.predictor.weight.grad is None, "the label predictor learns nothing from this"


def test_the_command_prints_every_way_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(m, "STEPS", 20)
    app = m.typer.Typer()
    app.command()(m.main)
    found = CliRunner().invoke(app, ["-o", str(tmp_path / "out"), "--seeds", "2"])
    assert found.exit_code == 0, found.output
    assert all(f"| {way} " in found.output for way in m.WAYS)
    frame = pl.read_parquet(tmp_path / "out" / "moons.parquet")
    assert len(frame) == 2 * len(m.WAYS)
    figures = sorted(path.name for path in (tmp_path / "out").glob("*.svg"))
    assert figures == ["figure_4_labels.svg", "figure_5_domains.svg", "figure_6_h_DA.svg", "figure_6_h_spec.svg"]
    assert all((tmp_path / "out" / name).read_text().startswith("<svg") for name in figures)


def test_summary_is_paired_over_seeds() -> None:
    rows = [(s, way, a + 0.01 * s, a, None) for s in range(3) for way, a in (("plain", 0.5), ("adversarial", 0.6))]
    rows[1] = (0, "adversarial", 0.63, 0.6, None)  # gains .13, .1, .1
    found = m.summary(pl.DataFrame(rows, ["seed", "way", "accuracy", "held_out", "domains"], orient="row")).row(1, named=True)
    assert found["over plain"] == pytest.approx(0.11)
    assert found["half width"] == pytest.approx(1.96 * np.std([0.13, 0.1, 0.1], ddof=1) / math.sqrt(3))


@pytest.mark.slow
def test_over_twenty_seeds_the_adversary_beats_the_plain_network_and_confuses_its_classifier() -> None:
    torch.set_num_threads(1)
    found = {row["way"]: row for row in m.summary(m.experiment(range(20))).iter_rows(named=True)}
    assert found["adversarial"]["over plain"] > found["adversarial"]["half width"]
    assert abs(found["adversarial"]["domains"] - 0.5) < 0.1  # worlds differ by .07, and rounding moves each
    assert found["plain"]["domains"] > 0.75
