"""Losses against numbers worked by hand and against the full softmax."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from isthmus.layers.losses import binary_cross_entropy, in_batch_softmax, sampled_softmax, squared_error


def test_binary_cross_entropy_by_hand() -> None:
    logit = torch.tensor([[0.0], [math.log(3.0)]])  # probabilities 1/2 and 3/4
    label = torch.tensor([[1.0], [0.0]])
    first, second = math.log(2), math.log(4)
    assert math.isclose(binary_cross_entropy(logit, label).item(), (first + second) / 2, rel_tol=1e-6)
    weighted = binary_cross_entropy(logit, label, torch.tensor([3.0, 1.0])).item()
    assert math.isclose(weighted, (3 * first + second) / 4, rel_tol=1e-6)


def test_squared_error_by_hand() -> None:
    value = squared_error(torch.tensor([[1.0, 2.0], [5.0, 5.0]]), torch.tensor([[1.0, 4.0], [5.0, 8.0]]))
    assert value.item() == (0 + 4 + 0 + 9) / 4
    weighted = squared_error(torch.tensor([[1.0], [5.0]]), torch.tensor([[3.0], [8.0]]), torch.tensor([0.0, 2.0]))
    assert weighted.item() == 9.0


def test_sampled_softmax_over_all_candidates_is_the_full_softmax() -> None:
    logit = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
    item = torch.tensor([[5, 6, 7], [7, 5, 6]])
    expected = F.cross_entropy(logit, torch.tensor([0, 0]))
    torch.testing.assert_close(sampled_softmax(logit, None, item), expected)
    uniform = torch.full_like(logit, -math.log(3))  # a constant per row cancels
    torch.testing.assert_close(sampled_softmax(logit, uniform, item), expected)


def test_log_q_by_hand() -> None:
    logit = torch.tensor([[math.log(2.0), 0.0]])
    log_q = torch.tensor([[math.log(0.5), math.log(0.25)]])
    # corrected: 2 / 0.5 = 4 against 1 / 0.25 = 4
    assert math.isclose(sampled_softmax(logit, log_q, torch.tensor([[3, 4]])).item(), math.log(2), rel_tol=1e-6)


def test_accidental_hits_and_padding_do_not_count() -> None:
    logit = torch.tensor([[0.3, 9.0, 0.1, 9.0]], requires_grad=True)
    loss = sampled_softmax(logit, None, torch.tensor([[5, 5, 6, 0]]))
    torch.testing.assert_close(loss, F.cross_entropy(logit.detach()[:, [0, 2]], torch.tensor([0])))
    loss.backward()
    assert logit.grad is not None
    assert logit.grad[0, [1, 3]].tolist() == [0.0, 0.0]


def test_a_row_of_nothing_but_hits_is_finite() -> None:
    logit = torch.zeros(1, 3, requires_grad=True)
    loss = sampled_softmax(logit, torch.zeros(1, 3), torch.tensor([[5, 5, 5]]))
    loss.backward()
    assert loss.item() == 0.0
    assert logit.grad is not None
    assert logit.grad.isfinite().all()


def _mean_gradient(logit: Tensor, q: Tensor, negatives: int, corrected: bool) -> Tensor:
    """Gradient by item of the sampled loss for positive 0, over many draws of negatives ~ q."""
    draws, catalogue = 4000, torch.arange(1, len(logit))
    generator = torch.Generator().manual_seed(0)
    item = catalogue[torch.multinomial(q[1:], draws * negatives, replacement=True, generator=generator)].view(draws, negatives)
    item = torch.cat([torch.zeros(draws, 1, dtype=torch.int64), item], 1)
    weights = logit.clone().requires_grad_(True)
    # the sampler never draws the positive: relative to its n draws the positive itself is certain, q = 1 / n
    log_q = torch.where(item == 0, -math.log(negatives), (q / q[1:].sum()).log()[item])
    sampled_softmax(weights[item], log_q if corrected else None, item + 1).backward()
    assert weights.grad is not None
    return weights.grad


def test_log_q_takes_out_the_bias_of_a_popular_sampler() -> None:
    logit = torch.tensor([0.5, 1.0, 0.0, -0.5, 0.2, 0.8, -1.0, 0.3])
    q = torch.tensor([1.0, 40.0, 1.0, 1.0, 10.0, 1.0, 1.0, 5.0])
    full = logit.softmax(0) - F.one_hot(torch.tensor(0), 8)
    errors = [(_mean_gradient(logit, q, n, True) - full).abs().max().item() for n in (4, 32, 256)]
    assert errors[0] > errors[1] > errors[2]  # unbiased in the limit
    assert errors[2] < 0.01
    assert (_mean_gradient(logit, q, 256, False) - full).abs().max().item() > 0.1  # without it: no limit helps


def test_in_batch_negatives_come_from_the_own_domain_only() -> None:
    torch.manual_seed(0)
    user, vector = torch.randn(5, 3), torch.randn(5, 3, requires_grad=True)
    item = torch.tensor([2, 3, 4, 2, 9])
    loss = in_batch_softmax(user, vector, item, (0, 3, 3, 5))
    logit = user @ vector.detach().T
    first = F.cross_entropy(logit[:3, :3], torch.arange(3), reduction="sum")
    second = F.cross_entropy(logit[3:, 3:], torch.arange(2), reduction="sum")
    torch.testing.assert_close(loss.detach(), (first + second) / 5)
    in_batch_softmax(user, vector, item, (0, 3, 3, 5), weight=torch.tensor([1.0, 1, 1, 0, 0])).backward()
    assert vector.grad is not None
    assert vector.grad[3:].abs().sum() == 0
    assert vector.grad[:3].abs().sum() > 0


def test_in_batch_repeats_are_masked_and_popularity_is_corrected() -> None:
    user = torch.tensor([[1.0], [1.0], [1.0]])
    vector = torch.tensor([[math.log(2.0)], [math.log(2.0)], [0.0]])
    item = torch.tensor([5, 5, 6])
    log_q = torch.log(torch.tensor([0.5, 0.5, 0.25]))
    # weights after correction: 4, 4, 4; rows 0 and 1 do not see each other
    expected = (math.log(2) + math.log(2) + math.log(3)) / 3
    assert math.isclose(in_batch_softmax(user, vector, item, (0, 3), log_q).item(), expected, rel_tol=1e-6)


def test_in_batch_softmax_of_no_rows_is_zero() -> None:
    user = torch.zeros(0, 2, requires_grad=True)
    loss = in_batch_softmax(user, torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), (0, 0))
    loss.backward()
    assert loss.item() == 0.0
