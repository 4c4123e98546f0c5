"""``Model``, ``Retriever`` and ``Stage``: the contract that every system keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from isthmus.batch import Batch, Needs, Output
from isthmus.errors import ConfigError
from isthmus.layers.growing import rows_of
from isthmus.schema import Schema

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset
    from isthmus.insight import Insight

Loss = Callable[["Model", Batch], dict[str, Tensor]]  # named scalar terms, which the loop adds and logs by name
StageLoss = Callable[["Model", Batch, Loss], dict[str, Tensor]]  # the same, with the task's loss to build on


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of training a model.  Most models have one; ``forward`` never knows which stage runs.

    Attributes:
        name: shown in the log.
        weights: the parameters to train; None means all.
        domains: train on rows of these domain indices only; None means all.
        loss: (model, batch, the task's loss) -> named scalar terms; None means the task's loss.
        solve: closed form instead of epochs: called once with the data set and the domain indices to learn
            from; fills the model's buffers.
        rows: parameters of which some rows alone are trained, with a bool mask over the first dimension.  They are trained beside
            ``weights``; their other rows stand still, bit for bit, and the whole of them never decays.
        known: judged by validation rows of users with training events in their domain alone; where there are none, the stage runs
            all its epochs and keeps the last weights.  For a stage that does not yet serve other users.
    """

    name: str
    weights: Sequence[nn.Parameter] | None = None
    domains: tuple[int, ...] | None = None
    loss: StageLoss | None = None
    solve: Callable[[Dataset, tuple[int, ...]], None] | None = None
    rows: Mapping[nn.Parameter, Tensor] | None = None
    known: bool = False

    def terms(self, model: Model, batch: Batch, task: Loss) -> dict[str, Tensor]:
        """What a batch loses by name: in the stage's own way, or in the task's."""
        return task(model, batch) if self.loss is None else self.loss(model, batch, task)


class Model(nn.Module, ABC):
    """A recommender for all domains.

    A concrete model is final: wrap or compose it, do not subclass it.  Its constructor is
    ``__init__(schema, *, <its own hyper-parameters, all with defaults>)``.

    Class attributes:
        needs: what it reads from a batch; exact for the defaults.  A model whose settings leave something out says so on itself.
        paper: where it comes from, one line.
        tasks: names of the tasks it can do.
        shallow: fitted in closed form, or without a hidden layer; the ledger's bar is the best of these.

    Attributes:
        schema: what it was built for.
        args: the hyper-parameters it was built with (those given), so that a run can build it again.
    """

    needs: ClassVar[Needs] = Needs()
    paper: ClassVar[str] = ""
    tasks: ClassVar[tuple[str, ...]] = ("ctr", "rating", "retrieval", "next_item")
    shallow: ClassVar[bool] = False
    args: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        model = super().__new__(cls)
        model.args = {k: v for k, v in kwargs.items() if k != "schema"}
        return model

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.schema = schema

    @abstractmethod
    def forward(self, batch: Batch) -> Output:
        """Logits (B, C); always the serving function."""

    def stages(self) -> list[Stage]:
        """How it is trained; one stage over all rows and weights unless overridden."""
        return [Stage("fit")]

    @classmethod
    def grown_args(cls, args: dict[str, Any], new_domains: tuple[str, ...]) -> dict[str, Any]:
        """The arguments of the same model for more domains; unchanged unless overridden.

        Args:
            args: what it was built with.
            new_domains: names of the domains that come after its own.
        """
        return args

    def adaptation(self, domains: tuple[int, ...], items: Tensor) -> list[Stage]:
        """How it is trained for new domains, all that serves the others standing still.

        Unless overridden its own stages, on rows of the new domains: of every weight that has a part for each domain the new
        domains' parts, and in the item tables the rows of new items and of categories that they alone have.

        Args:
            domains: indices of the new domains.
            items: (item.size,) bool, the codes of the new items.

        Raises:
            ConfigError: a model without any such weight, such as one in closed form.
        """
        parameters, stages = dict(self.named_parameters()), list[Stage]()
        own = {parameters[name]: mask for name, mask in rows_of(self, domains, items).items() if name in parameters}
        for stage in self.stages():
            wanted = own if stage.weights is None else own.keys() & set(stage.weights)
            whole = [p for p in own if p in wanted and own[p] is None]
            rows = {p: mask for p, mask in own.items() if p in wanted and mask is not None and mask.any()}
            if stage.solve is None and (whole or rows):
                stages.append(replace(stage, name=f"adapt: {stage.name}", weights=whole, domains=domains, rows=rows))
        if not stages:
            came = f"{type(self).__name__} has no weights of a domain's or an item's own"
            raise ConfigError(came, "some to adapt", "fit it again on the data of all domains")
        return stages

    def insights(self, dataset: Dataset) -> list[Insight]:
        """What there is to see inside a fitted model, for the report; nothing unless overridden."""
        return []

    def look(self, dataset: Dataset, batches: Sequence[Batch]) -> list[Insight]:
        """What there is to see of one user; nothing unless overridden.

        Args:
            dataset: whose vocabularies know the ids of items.
            batches: one for each domain asked about, each of one row: the user as of now, without candidates.
        """
        return []


class Retriever(Model):
    """A model whose score is a dot product, so that its items can be indexed."""

    @abstractmethod
    def user_vector(self, batch: Batch) -> Tensor:
        """(B, d)."""

    @abstractmethod
    def item_vector(self, item: Tensor, domain: Tensor) -> Tensor:
        """Item codes (...) and domain indices of the same shape -> (..., d)."""

    def forward(self, batch: Batch) -> Output:
        """The dot product of each row's user with each of its candidates."""
        domain = batch.domain[:, None].expand_as(batch.item)
        user, item = self.user_vector(batch), self.item_vector(batch.item, domain)
        return Output((user[:, None, :] * item).sum(-1))


class Sequential(Retriever):
    """A retriever whose user vector is the last of the states that it has after every event.

    It is trained at all of them at once: the state after an event is asked for what came next.  So a state must know the events up
    to and including its own, and nothing of later ones.
    """

    @abstractmethod
    def states(self, batch: Batch) -> Tensor:
        """(B, L, d), L the width of the histories and at least 1: the state after each event.

        Before the first event (where histories are padded) it is the state that knows no event.
        """

    def user_vector(self, batch: Batch) -> Tensor:
        """(B, d), the state after the last event."""
        return self.states(batch)[:, -1]


def device_of(model: nn.Module) -> torch.device:
    """Where a model's weights are."""
    return next(chain(model.parameters(), model.buffers()), torch.empty(0)).device


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Running statistics and no dropout in the block; every module's mode before comes back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def scoring(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the mode before comes back."""
    with evaluating(model), torch.inference_mode():
        yield
