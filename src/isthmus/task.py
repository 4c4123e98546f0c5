"""``Task``: what is predicted, with which loss, negatives and metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from isthmus.batch import Batch, Output
from isthmus.errors import ConfigError, nearest
from isthmus.layers import losses
from isthmus.model import Model
from isthmus.schema import LabelKind, Schema


@dataclass(frozen=True, slots=True)
class Task:
    """One job.

    Attributes:
        name: ``ctr``, ``rating`` or ``retrieval``.
        labels: label kinds it can learn from.
        loss: (model, batch, output) -> scalar.
        ranked: candidates are ranked against each other (metrics per query, negatives in training);
            otherwise each logged row is judged by its own label.
        metrics: what ``measure`` computes by default; the first one is watched for early stopping.
        negatives: sampled negatives per positive in training, by default.
    """

    name: str
    labels: tuple[LabelKind, ...]
    loss: Callable[[Model, Batch, Output], Tensor]
    ranked: bool
    metrics: tuple[str, ...]
    negatives: int = 0


def _click_loss(model: Model, batch: Batch, output: Output) -> Tensor:
    return losses.binary_cross_entropy(output.logit, _labels(batch), batch.weight)


def _rating_loss(model: Model, batch: Batch, output: Output) -> Tensor:
    return losses.squared_error(output.logit, _labels(batch), batch.weight)


def _retrieval_loss(model: Model, batch: Batch, output: Output) -> Tensor:
    return losses.sampled_softmax(output.logit, batch.log_q, batch.item, batch.weight)


def _labels(batch: Batch) -> Tensor:
    if batch.label is None:
        raise ConfigError("a training batch without labels", "label (B, C)", "make batches with labels=True")
    return batch.label


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("ctr", ("click",), _click_loss, False, ("auc", "gauc", "logloss", "calibration_error")),
        Task("rating", ("rating",), _rating_loss, False, ("rmse", "mae")),
        Task(
            "retrieval",
            ("implicit", "click", "rating"),
            _retrieval_loss,
            True,
            ("ndcg@10", "recall@10", "hit_rate@10", "mrr", "recall@50"),
            negatives=64,
        ),
    )
}


def get_task(name: str) -> Task:
    """A task by name.

    Raises:
        ConfigError: no such task; names the nearest one.
    """
    if name not in TASKS:
        raise ConfigError(f"unknown task {name!r}", f"one of {tuple(TASKS)}", nearest(name, TASKS))
    return TASKS[name]


def default_task(schema: Schema) -> Task:
    """The task that a label kind suggests: click -> ctr, rating -> rating, implicit -> retrieval."""
    return TASKS[{"click": "ctr", "rating": "rating", "implicit": "retrieval"}[schema.label]]
