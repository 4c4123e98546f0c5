"""Small hand-made schemas and batches: the equations of the papers are checked on numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from isthmus.batch import Batch
from isthmus.schema import Domain, Entity, Schema


@pytest.fixture
def schema() -> Schema:
    """Two domains, six users, six items, no fields."""
    return Schema(Entity("user", (), 6, 6), Entity("item", (), 6, 6), (Domain("a"), Domain("b")), label="click")


@pytest.fixture
def batch() -> Batch:
    """Three rows of domain a, two of domain b; two candidates each."""
    return Batch(
        user=torch.tensor([2, 3, 4, 3, 5]),
        item=torch.tensor([[2, 3], [4, 5], [3, 2], [5, 2], [4, 3]]),
        domain=torch.tensor([0, 0, 0, 1, 1]),
        offsets=(0, 3, 5),
        history=torch.tensor([[0, 2], [3, 4], [0, 0], [0, 5], [2, 3]]),
        label=torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]),
    )
