"""``Task``: what is predicted, with which loss, negatives and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from isthmus.batch import Batch, Pool, Targets
from isthmus.data.queries import Each
from isthmus.errors import ConfigError, nearest
from isthmus.layers import losses
from isthmus.model import Loss, Model, Retriever, Sequential
from isthmus.schema import LabelKind, Schema

OBJECTIVES = ("softmax", "bce")


@dataclass(frozen=True, slots=True)
class Task:
    """One job.

    Attributes:
        name: ``ctr``, ``rating``, ``retrieval`` or ``next_item``.
        labels: label kinds it can learn from.
        loss: (model, batch) -> named scalar terms.
        ranked: candidates are ranked against each other (metrics per query, negatives in training);
            otherwise each logged row is judged by its own label.
        metrics: what ``measure`` computes by default; the first one is watched for early stopping.
        negatives: sampled negatives per positive in training, by default.
        each: what is a question where candidates are ranked: a ``user`` of a domain, for all that she chooses in the part judged, or every
            ``event``, as of its own moment.
    """

    name: str
    labels: tuple[LabelKind, ...]
    loss: Loss
    ranked: bool
    metrics: tuple[str, ...]
    negatives: int = 0
    each: Each = "user"

    def with_absolute_error(self, weight: float) -> Task:
        """This task, with the absolute error beside the squared one: predictions move from the mean towards the median.

        Raises:
            ConfigError: a negative weight, or a task that predicts no ratings.
        """
        if weight < 0 or (weight and self.name != "rating"):
            raise ConfigError(f"absolute_error = {weight} for task {self.name!r}", "0, or more for task 'rating'", "leave it out")
        return replace(self, loss=partial(_rating_loss, absolute=weight)) if weight else self

    def with_objective(self, objective: str) -> Task:
        """This task, learnt by a ``softmax`` over candidates, or as yes and no (``bce``).

        Raises:
            ConfigError: no such objective, or a task that ranks nothing.
        """
        if objective not in OBJECTIVES:
            raise ConfigError(f"objective {objective!r}", f"one of {OBJECTIVES}", nearest(objective, OBJECTIVES))
        if objective == "softmax":
            return self
        if not self.ranked:
            raise ConfigError(f"objective {objective!r} for task {self.name!r}", "a task that ranks candidates", "leave it out")
        return replace(self, loss=contrast_loss)


def _click_loss(model: Model, batch: Batch) -> dict[str, Tensor]:
    output = model(batch)
    return {"loss": losses.binary_cross_entropy(output.logit, _labels(batch), batch.weight), **output.extra}


def _rating_loss(model: Model, batch: Batch, absolute: float = 0.0) -> dict[str, Tensor]:
    output, label = model(batch), _labels(batch)
    loss = {"loss": losses.squared_error(output.logit, label, batch.weight), **output.extra}
    if absolute:
        loss["absolute"] = absolute * losses.absolute_error(output.logit, label, batch.weight)
    return loss


def retrieval_loss(model: Model, batch: Batch) -> dict[str, Tensor]:
    """Softmax over each row's own negatives, or over the pool that the rows of a domain share.

    Raises:
        ConfigError: a pool for a model whose score is no dot product.
    """
    if batch.target is not None:
        return _next_loss(model, batch, batch.target)
    if batch.pool is None:
        output = model(batch)
        return {"loss": losses.sampled_softmax(output.logit, batch.log_q, batch.item, batch.weight), **output.extra}
    if not isinstance(model, Retriever):
        came = f"candidates shared by all rows of a domain, for {type(model).__name__}"
        raise ConfigError(came, "a retriever, whose score is a dot product", 'use sampler "uniform" or "popularity"')
    user, item = model.user_vector(batch), batch.item[:, 0]
    return {"loss": _pool_loss(model, batch.pool, user, item, batch.domain, batch.offsets, batch.weight)}


def contrast_loss(model: Model, batch: Batch) -> dict[str, Tensor]:
    """Binary cross-entropy of what was chosen against each row's own negatives, which together weigh as much.

    Raises:
        ConfigError: no negatives of the rows' own.
    """
    if batch.target is not None and batch.target.negative is not None:
        assert isinstance(model, Sequential)
        target = batch.target
        items = torch.cat([target.item[:, None], batch.target.negative], 1)
        user = _asked(model, batch, target)
        logit = (user[:, None] * model.item_vector(items, target.domain[:, None].expand_as(items))).sum(-1)
        return {"loss": losses.contrast(logit, items, target.weight)}
    if batch.pool is not None or batch.item.shape[1] < 2:
        raise ConfigError("objective 'bce' with candidates that rows share", "each row's own", 'use sampler "uniform" or "popularity"')
    output = model(batch)
    return {"loss": losses.contrast(output.logit, batch.item, batch.weight), **output.extra}


def _next_loss(model: Model, batch: Batch, target: Targets) -> dict[str, Tensor]:
    """Softmax of what came next at every place of the batch's sequences."""
    assert isinstance(model, Sequential)
    user = _asked(model, batch, target)
    if batch.pool is not None:
        return {"loss": _pool_loss(model, batch.pool, user, target.item, target.domain, target.offsets, target.weight)}
    assert target.negative is not None
    items = torch.cat([target.item[:, None], target.negative], 1)
    logit = (user[:, None] * model.item_vector(items, target.domain[:, None].expand_as(items))).sum(-1)
    return {"loss": losses.sampled_softmax(logit, target.log_q, items, target.weight)}


def _asked(model: Sequential, batch: Batch, target: Targets) -> Tensor:
    """(N, d) the states that the targets are asked at."""
    return model.states(batch).flatten(0, 1).index_select(0, target.slot)


def _pool_loss(
    model: Retriever, pool: Pool, user: Tensor, item: Tensor, domain: Tensor, offsets: Sequence[int], weight: Tensor | None
) -> Tensor:
    """Softmax of user vectors (N, d) for items (N,) over shared candidates."""
    vectors = model.item_vector(pool.item, pool.domain)
    positive = model.item_vector(item, domain) if pool.own is None else vectors[pool.own]
    return losses.pool_softmax(user, item, offsets, vectors, pool, positive, weight)


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
            retrieval_loss,
            True,
            ("ndcg@10", "recall@10", "hit_rate@10", "mrr", "recall@50"),
            negatives=64,
        ),
        Task(
            "next_item",
            ("implicit", "click", "rating"),
            retrieval_loss,
            True,
            ("ndcg@10", "hit_rate@10", "mrr", "hit_rate@50"),
            negatives=64,
            each="event",
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


def default_task(schema: Schema, able: tuple[str, ...] | None = None) -> Task:
    """The task that a label kind suggests: click -> ctr, rating -> rating, implicit -> retrieval.

    Args:
        schema: with the label's kind.
        able: tasks that a model can do; where the suggestion is none of them, the first that learns from such labels.
    """
    usual = TASKS[{"click": "ctr", "rating": "rating", "implicit": "retrieval"}[schema.label]]
    if able is None or usual.name in able:
        return usual
    return next((TASKS[name] for name in able if schema.label in TASKS[name].labels), usual)
