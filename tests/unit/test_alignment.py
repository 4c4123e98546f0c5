"""Proxy A-distance and principal components: known distances, and scikit-learn's answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from isthmus.layers.alignment import a_distance, principal


def normal(rows: int, width: int, seed: int) -> Tensor:
    return torch.tensor(np.random.default_rng(seed).standard_normal((rows, width)), dtype=torch.float32)


def test_alike_is_nothing_and_apart_is_two() -> None:
    here, there = normal(4000, 3, 0), normal(4000, 3, 1)
    assert a_distance(here, there) < 0.1
    assert a_distance(here, here.clone()) == pytest.approx(0.0, abs=0.1)
    assert a_distance(here, there + 50) == 2.0


@pytest.mark.parametrize("apart", [0.5, 1.0, 2.0])
def test_two_normals_have_the_distance_of_their_best_line(apart: float) -> None:
    stretch = torch.tensor([[1.0, 5.0], [0.0, 9.0]])  # a line must look at both numbers
    here, there = (normal(20_000, 2, seed) + torch.tensor([apart * seed, 0.0]) for seed in (0, 1))
    error = norm.cdf(-apart / 2)
    assert a_distance(here @ stretch, there @ stretch) == pytest.approx(2 * (1 - 2 * error), abs=0.03)


def test_as_scikit_learns_discriminant_with_sides_of_other_sizes() -> None:
    here, there = normal(400, 4, 2), normal(60, 4, 3) * 1.3 + 0.4
    errors = []
    for k in (0, 1):
        x, y = torch.cat([here[k::2], there[k::2]]).numpy(), [0] * 200 + [1] * 30
        rule = LinearDiscriminantAnalysis(priors=[0.5, 0.5], solver="lsqr", covariance_estimator=Pooled()).fit(x, y)
        asked = [rule.predict(side[1 - k :: 2].numpy()) for side in (here, there)]
        errors.append((np.mean(asked[0] == 1) + np.mean(asked[1] == 0)) / 2)
    assert a_distance(here, there) == pytest.approx(2 - 4 * np.mean(errors), abs=1e-6)


class Pooled:
    """Both sides' covariances count alike, whatever their numbers of rows: scikit-learn asks once for each side."""

    def fit(self, x: np.ndarray) -> Pooled:
        self.covariance_ = np.cov(x.T, bias=True) + 1e-3 * np.eye(x.shape[1])
        return self


def test_few_rows_and_constant_features_say_nothing() -> None:
    assert a_distance(normal(3, 2, 0), normal(50, 2, 1) + 9) == 0.0
    flat = torch.cat([normal(50, 1, 0), torch.ones(50, 2)], 1)
    assert math.isfinite(a_distance(flat, flat + torch.tensor([3.0, 0.0, 0.0])))


def test_principal_components_are_scikit_learns_but_for_the_sign() -> None:
    x = normal(50, 5, 4) @ torch.diag(torch.tensor([5.0, 1.0, 3.0, 0.1, 0.2])) + 7
    ours, theirs = principal(x).numpy(), PCA(2).fit_transform(x.numpy())
    assert np.abs(ours) == pytest.approx(np.abs(theirs), abs=1e-4)
    assert principal(x[:, :1])[:, 1].abs().max() == 0, "one number has one direction"
    assert principal(x).equal(principal(x.clone()))
