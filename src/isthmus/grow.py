"""``grow``: a trained model for a data set that extends the one it was trained on, with every weight taken over."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from isthmus.batch import Batch, Output
from isthmus.errors import ConfigError
from isthmus.layers.from_data import FromData, fill
from isthmus.layers.growing import Growing
from isthmus.model import Model, device_of
from isthmus.schema import PADDING, UNKNOWN, Entity, Schema

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset


def grow(model: Model, dataset: Dataset) -> Model:
    """The same model for more domains, ids and categories; until it is trained it scores the old domains as before.

    What serves them is copied bit for bit; their scores are the same up to rounding, since products that are wider by a domain
    may add up in another order on some processors.  How a layer goes on is its own to say (``isthmus.layers.growing``); a weight
    of the same shape is copied.

    Args:
        model: trained; not changed.
        dataset: encoded with ``base=`` the data set that the model was trained on.

    Returns:
        A new model, on the same device.

    Raises:
        ConfigError: the data set does not extend the model's, or a weight whose growth no rule covers (it is named).
    """
    old = model.schema
    new = dataset.schema.hashed(old.user.hashed, old.item.hashed)
    _check(old, new)
    args = type(model).grown_args(dict(model.args), new.domain_names[len(old.domains) :])
    with torch.random.fork_rng(devices=[]):
        grown = type(model)(new, **args)
    fill(grown, dataset)
    grown.to(device_of(model))
    with torch.no_grad():
        _take_over(grown, model)
    return grown.train(model.training)


def _take_over(grown: Model, model: Model) -> None:
    before, done = dict(model.named_modules()), set[str]()
    for name, module in grown.named_modules():
        if isinstance(module, Growing) and name in before:
            done |= {f"{name}.{key}" if name else key for key in module.grow_from(before[name])}
    known = model.state_dict()
    for name, tensor in grown.state_dict(keep_vars=True).items():
        if name in done or _from_data(grown, name, tensor):
            continue
        if name not in known or known[name].shape != tensor.shape:
            came = f"{name} of {type(grown).__name__}, of shape {tuple(tensor.shape)}" + (
                f" instead of {tuple(known[name].shape)}" if name in known else ", which the trained model does not have"
            )
            raise ConfigError(came, "weights that say how they grow", "give the layer a rule (isthmus.layers.growing), or train anew")
        tensor.copy_(known[name])


def _from_data(model: Model, name: str, tensor: Tensor) -> bool:
    """Was it filled from the data set?"""
    return not isinstance(tensor, nn.Parameter) and isinstance(model.get_submodule(name.rpartition(".")[0]), FromData)


def _check(old: Schema, new: Schema) -> None:
    kept = (
        new.domain_names[: len(old.domains)] == old.domain_names
        and new.behaviours[: len(old.behaviours)] == old.behaviours
        and new.label == old.label
        and all(_extends(getattr(old, side), getattr(new, side)) for side in ("user", "item"))
        and [(f.name, f.kind) for f in old.context] == [(f.name, f.kind) for f in new.context]
    )
    if not kept:
        came = f"data of domains {new.domain_names} for a model of {old.domain_names}"
        raise ConfigError(came, "a data set that extends the model's own", "encode it with base=, or prepare it with --base")


def _extends(old: Entity, new: Entity) -> bool:
    return [(f.name, f.kind) for f in old.fields] == [(f.name, f.kind) for f in new.fields] and old.trained <= new.trained


class Translated(Model):
    """A grown model as seen from the data set that it grew from: codes of the old one in, scores out.

    Args:
        model: grown.
        base: what the model was trained on before.
        dataset: what it has grown for.
    """

    users: Tensor
    items: Tensor

    def __init__(self, model: Model, base: Dataset, dataset: Dataset) -> None:
        super().__init__(base.schema)
        self.model, self.needs = model, model.needs  # type: ignore[misc]  # as the model's own
        self.more = len(dataset.schema.domains) - len(base.schema.domains)
        pairs = ((base.user_vocabulary, dataset.user_vocabulary), (base.item_vocabulary, dataset.item_vocabulary))
        for name, (old, new) in zip(("users", "items"), pairs, strict=True):
            codes = torch.cat([torch.tensor([PADDING, UNKNOWN]), torch.from_numpy(new.encode(old.ids)).long()])
            self.register_buffer(name, codes.to(device_of(model)))

    def forward(self, batch: Batch) -> Output:
        """Logits (B, C)."""
        coded = ("item", "history", "cross_history", "merged_history")
        items = {name: self.items[codes] for name in coded if (codes := getattr(batch, name)) is not None}
        offsets = (*batch.offsets, *batch.offsets[-1:] * self.more)
        return self.model(replace(batch, user=self.users[batch.user], offsets=offsets, **items))
