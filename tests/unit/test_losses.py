"""Losses against numbers worked by hand and against the full softmax."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from isthmus.batch import Pool
from isthmus.layers.losses import absolute_error, binary_cross_entropy, contrast, pool_softmax, sampled_softmax, squared_error


def test_binary_cross_entropy_by_hand() -> None:
    logit = torch.tensor([[0.0], [math.log(3.0)]])  # probabilities 1/2 and 3/4
    label = torch.tensor([[1.0], [0.0]])
    first, second = math.log(2), math.log(4)
    assert math.isclose(binary_cross_entropy(logit, label).item(), (first + second) / 2, rel_tol=1e-6)
    weighted = binary_cross_entropy(logit, label, torch.tensor([3.0, 1.0])).item()
    assert math.isclose(weighted, (3 * first + second) / 4, rel_tol=1e-6)


def test_absolute_error_by_hand() -> None:
    value = absolute_error(torch.tensor([[1.0, 2.0], [5.0, 5.0]]), torch.tensor([[1.0, 4.0], [5.0, 8.0]]))
    assert value.item() == (0 + 2 + 0 + 3) / 4
    weighted = absolute_error(torch.tensor([[1.0], [5.0]]), torch.tensor([[3.0], [8.0]]), torch.tensor([0.0, 2.0]))
    assert weighted.item() == 3.0


def test_contrast_by_hand() -> None:
    logit = torch.tensor([[math.log(3.0), 0.0, -math.log(3.0)], [0.0, math.log(3.0), 5.0]])
    item = torch.tensor([[7, 8, 9], [7, 8, 7]])  # the last negative of the second row is its own item
    first = math.log(4 / 3) + (math.log(2) + math.log(4 / 3)) / 2
    second = math.log(2) + math.log(4)
    assert math.isclose(contrast(logit, item).item(), (first + second) / 2, rel_tol=1e-6)
    assert math.isclose(contrast(logit, item, torch.tensor([1.0, 3.0])).item(), (first + 3 * second) / 4, rel_tol=1e-6)
    alone = contrast(logit[:1], torch.tensor([[7, 7, 7]])).item()
    assert math.isclose(alone, math.log(4 / 3), rel_tol=1e-6)


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


def _pool(item: list[int], offsets: tuple[int, ...], log_q: Tensor | None = None) -> Pool:
    domain = torch.arange(len(offsets) - 1).repeat_interleave(torch.tensor(offsets).diff())
    return Pool(torch.tensor(item), domain, offsets, torch.zeros(0, dtype=torch.int64), log_q)


def test_candidates_come_from_the_own_domain_only() -> None:
    user, vector = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4)
    item = torch.tensor([1, 2, 3, 1, 2])
    pool = _pool(item.tolist(), (0, 3, 3, 5), torch.zeros(5))
    loss = pool_softmax(user, item, (0, 3, 3, 5), vector, pool, vector)
    logit = [user[:3] @ vector[:3].T, user[3:] @ vector[3:].T]
    expected = (3 * F.cross_entropy(logit[0], torch.arange(3)) + 2 * F.cross_entropy(logit[1], torch.arange(2))) / 5
    torch.testing.assert_close(loss, expected)
    pool_softmax(user, item, (0, 3, 3, 5), vector, pool, vector, torch.tensor([1.0, 1, 1, 0, 0])).backward()
    assert user.grad is not None
    assert user.grad[3:].abs().max() == 0
    assert user.grad[:3].abs().min() > 0


def test_pool_softmax_by_hand() -> None:
    user, vector = torch.ones(1, 1), torch.tensor([[math.log(2.0)], [math.log(2.0)], [math.log(3.0)], [math.log(8.0)]])
    log_q = torch.tensor([0.5, 0.5, 3.0, 4.0]).log()
    pool = _pool([7, 7, 8, 9], (0, 4), log_q)  # the second 7 is an accidental hit
    loss = pool_softmax(user, torch.tensor([7]), (0, 1), vector, pool, vector[:1])
    assert math.isclose(loss.item(), -math.log(2 / (2 + 3 / 3 + 8 / 4)), rel_tol=1e-6)  # 8 counts 1 / 3, 9 counts 1 / 4, its own item 1


def test_a_whole_catalogue_gives_the_full_softmax() -> None:
    user, vector = torch.randn(4, 3), torch.randn(5, 3)
    pool = _pool([2, 5, 9, 4, 9], (0, 3, 5))
    item = torch.tensor([9, 2, 9, 4])
    loss = pool_softmax(user, item, (0, 2, 4), vector, pool, vector[:4])
    first, second = user[:2] @ vector[:3].T, user[2:] @ vector[3:].T
    expected = (F.cross_entropy(first, torch.tensor([2, 0])) + F.cross_entropy(second, torch.tensor([1, 0]))) / 2
    torch.testing.assert_close(loss, expected)


def _pool_gradient(corrected: bool, n: int) -> tuple[Tensor, Tensor]:
    """Mean gradient by item of one row's loss over pools drawn by popularity, and that of the full softmax."""
    generator = torch.Generator().manual_seed(0)
    logit = torch.tensor([0.5, 1.0, -0.5, 0.2, 0.0, 1.5])
    q = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.04, 0.01])
    target = torch.tensor([1])
    total = torch.zeros(6)
    draws = 100
    for _ in range(draws):
        drawn = torch.multinomial(q, n, replacement=True, generator=generator)
        vectors = logit.clone()[:, None].requires_grad_(True)
        log_q = (n * q[drawn]).log() if corrected else torch.zeros(n)
        pool = _pool(drawn.tolist(), (0, n), log_q)
        pool_softmax(torch.ones(1, 1), target, (0, 1), vectors[drawn], pool, vectors[target]).backward()
        assert vectors.grad is not None
        total += vectors.grad[:, 0]
    return total / draws, logit.softmax(0) - F.one_hot(target[0], 6)


def test_log_q_makes_a_popularity_biased_pool_unbiased() -> None:
    corrected, full = _pool_gradient(True, 4096)
    torch.testing.assert_close(corrected, full, atol=0.01, rtol=0.0)
    plain, _ = _pool_gradient(False, 4096)
    assert (plain - full).abs().max() > 0.1, "without the correction the same pools must be far off"


def test_a_row_alone_with_its_own_item_is_finite() -> None:
    vector = torch.randn(1, 2, requires_grad=True)
    pool = _pool([3], (0, 1), torch.tensor([-60.0]))
    loss = pool_softmax(torch.randn(1, 2), torch.tensor([3]), (0, 1), vector, pool, vector)
    loss.backward()
    assert loss.item() == 0.0
    assert vector.grad is not None
    assert vector.grad.isfinite().all()


def test_a_positive_beside_the_pool_counts_once() -> None:
    """A pool that happens to hold every item once, without saying where the rows' own are, is the full softmax."""
    torch.manual_seed(0)
    user, table = torch.randn(3, 4), torch.randn(6, 4)
    item = torch.tensor([2, 4, 5])
    pool = Pool(torch.arange(1, 7), torch.zeros(6, dtype=torch.int64), (0, 6), None, torch.zeros(6))
    found = pool_softmax(user, item, (0, 3), table, pool, table[item - 1])
    torch.testing.assert_close(found, F.cross_entropy(user @ table.T, item - 1))


@pytest.mark.parametrize("drawn", [True, False])
def test_pool_softmax_against_torch(drawn: bool) -> None:
    """Values and gradients of a plain form, for logits beyond what exp can take; two domains, a hit, an item that is in the pool twice."""
    torch.manual_seed(0)
    user, table, positive = (torch.randn(n, 3, dtype=torch.float64).mul_(40).requires_grad_() for n in (5, 9, 5))
    item, offsets = torch.tensor([2, 4, 4, 8, 6]), (0, 3, 5)
    log_q = torch.randn(9, dtype=torch.float64) if drawn else None
    pool = _pool([2, 3, 4, 5, 5 if drawn else 6, 6, 7, 8, 9], (0, 5, 9), log_q)
    weight = torch.rand(5, dtype=torch.float64)

    def plain() -> Tensor:
        found = []
        for row in range(5):
            part = slice(0, 5) if row < 3 else slice(5, 9)
            logit, own = user[row] @ table[part].T, pool.item[part] == item[row]
            if log_q is None:
                found.append(F.cross_entropy(logit, own.nonzero()[0, 0]))
            else:
                others = torch.cat([(user[row] @ positive[row])[None], (logit - log_q[part])[~own]])
                found.append(F.cross_entropy(others, torch.tensor(0)))
        return (torch.stack(found) * weight).sum() / weight.sum()

    wanted, found = plain(), pool_softmax(user, item, offsets, table, pool, positive, weight)
    torch.testing.assert_close(found, wanted)
    inputs = (user, table, positive) if drawn else (user, table)
    for one, other in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(wanted, inputs), strict=True):
        torch.testing.assert_close(one, other)


def test_pool_softmax_in_half_precision_products() -> None:
    torch.manual_seed(0)
    user, table = torch.randn(6, 8, requires_grad=True), torch.randn(20, 8, requires_grad=True)
    pool, item = _pool(list(range(2, 22)), (0, 20), torch.randn(20)), torch.arange(4, 10)
    wanted = pool_softmax(user, item, (0, 6), table, pool, table[item - 2])
    with torch.autocast("cpu", torch.bfloat16):
        found = pool_softmax(user, item, (0, 6), table, pool, table[item - 2])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, atol=0.05, rtol=0.05)
    for one, other in zip(torch.autograd.grad(found, (user, table)), torch.autograd.grad(wanted, (user, table)), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, atol=0.03, rtol=0.05)


def test_the_sum_over_a_pool_is_not_in_half_precision() -> None:
    """States that a network made in bfloat16: the sum and its corrections keep all their bits."""
    torch.manual_seed(0)
    user, table, item = torch.randn(6, 8).bfloat16(), torch.randn(4000, 8), torch.arange(4, 10)
    pool = _pool(list(range(2, 4002)), (0, 4000), torch.full((4000,), 9.03))
    with torch.autocast("cpu", torch.bfloat16):
        found = pool_softmax(user, item, (0, 6), table, pool, table[item - 2])
        logit = (user @ table.T).float() - 9.03
    right = (user * table[item - 2]).sum(1)
    others = logit.masked_fill(pool.item == item[:, None], -torch.inf)
    torch.testing.assert_close(found, (torch.logaddexp(right, others.logsumexp(1)) - right).mean(), atol=1e-4, rtol=1e-4)


def test_pool_softmax_of_no_rows_is_zero() -> None:
    user = torch.zeros(0, 2, requires_grad=True)
    loss = pool_softmax(user, torch.zeros(0, dtype=torch.int64), (0, 0), torch.zeros(0, 2), _pool([], (0, 0)), torch.zeros(0, 2))
    loss.backward()
    assert loss.item() == 0.0
