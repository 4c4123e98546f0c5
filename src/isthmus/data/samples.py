"""A few rows of every domain, for looks inside a model."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from isthmus.batch import Batch, Needs
from isthmus.data.batches import batches
from isthmus.data.dataset import Dataset
from isthmus.data.order import Plan


def samples(dataset: Dataset, needs: Needs, size: int, *, labels: bool = False) -> Iterator[tuple[str, Batch]]:
    """One batch of each domain that has rows, of validation where it has some there, else of training.

    Args:
        dataset: encoded.
        needs: of the model that is looked into.
        size: rows of a batch, at most.
        labels: with the rows' labels.

    Yields:
        The domain's name, and its batch.
    """
    for domain, name in enumerate(dataset.schema.domain_names):
        plan = Plan(batch_size=size, domains=(domain,), cross=True)
        parts = (batches(dataset, part, needs, plan, labels=labels, prefetch=0) for part in ("valid", "train"))
        for batch in itertools.islice(itertools.chain.from_iterable(parts), 1):
            yield name, batch
