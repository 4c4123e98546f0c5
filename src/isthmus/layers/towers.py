"""``Towers``: the frame that every two-tower retriever shares.

    u = f_user(user id and fields, context, domain, history here, history elsewhere)
    v = f_item(item id and fields, domain)
    score = u . v

The user tower reads histories beside the id, so that a user without an id of her own still gets a useful vector, and
the item tower reads fields, so that a new item does.  Histories go through the item tower's own table unless
``tied`` is False: then what an item says about its user and what it is liked for are learnt apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isthmus.batch import Batch, Needs
from isthmus.errors import ConfigError
from isthmus.layers.checks import require_share
from isthmus.layers.domain_items import ItemBias
from isthmus.layers.features import ContextFields, EntityFields
from isthmus.layers.table import DomainTable
from isthmus.schema import PADDING, Field, Schema

Make = Callable[[int, int], nn.Module]  # (fields, dim) -> a network: (N, fields, dim), offsets -> (N, dim)
NEEDS = Needs(history=True, cross_history=True, context=True)


class Towers(nn.Module):
    """Two towers over fields of one width.

    Args:
        schema: of an encoded data set.
        make, make_item: make the networks of the user's and the item's tower; without ``make_item`` both are made by ``make``.
        dim: width of a field's vector and of both towers' output.
        user_id: read the user's id; False: her fields and histories alone.
        history: read what she chose in this domain and in others.
        tied: histories and candidates share one table.
        id_dropout: share of ids replaced by "unknown" in training; what a user's history can say, the id need not.
        history_dropout: share of history events left out in training.
        temperature: None: plain dot products; a positive number: cosine / temperature.
        bias: a number for each item in each domain, added to its score, see ``ItemBias``.

    Attributes:
        user_names, item_names: what the fields of each tower are.

    Raises:
        ConfigError: a width below 1, a dropout outside [0, 1), or a temperature that is not positive and finite.
    """

    def __init__(
        self,
        schema: Schema,
        make: Make,
        make_item: Make | None = None,
        *,
        dim: int = 64,
        user_id: bool = True,
        history: bool = True,
        tied: bool = True,
        id_dropout: float = 0.5,
        history_dropout: float = 0.0,
        temperature: float | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if dim < 1:
            raise ConfigError(f"dim = {dim!r}", "1 or more", "give the width of a field's vector, such as 64")
        if temperature is not None and not 0 < temperature < math.inf:
            raise ConfigError(f"temperature = {temperature!r}", "a positive number, or None", "try 0.1, or None for plain dot products")
        require_share("history_dropout", history_dropout)
        self.domains, self.temperature, self.history_dropout = len(schema.domains), temperature, history_dropout
        self.user_id, self.history = user_id, history
        self.users = EntityFields(schema.user, dim, id_dropout=id_dropout)
        self.items = EntityFields(schema.item, dim, id_dropout=0.05)
        self.chosen = None if tied or not history else EntityFields(schema.item, dim, id_dropout=0.0)
        self.context = ContextFields(schema.context, dim) if schema.context else None
        self.bias = ItemBias(schema) if bias else None
        self.user_domain, self.item_domain = (DomainTable(self.domains, dim, std=0.01) for _ in range(2))
        users = (["id"] if user_id else []) + _names(schema.user.fields)
        items = ["id", *_names(schema.item.fields)]
        context = [f.name for f in sorted(schema.context, key=lambda f: f.kind == "numeric")]  # as ContextFields puts them
        past = [f"{kind} {name}" for kind in ("history", "elsewhere") for name in items] if history else []
        self.user_names = (*users, "domain", *context, *past)
        self.item_names = (*items, "domain")
        self.user_tower = make(len(self.user_names), dim)
        self.item_tower = (make_item or make)(len(self.item_names), dim)

    @property
    def needs(self) -> Needs:
        """What the towers read from a batch."""
        return NEEDS if self.history else Needs(context=True)

    def user_fields(self, batch: Batch) -> Tensor:
        """(B, user fields, dim)."""
        own = self.users(batch.user)
        parts = [own if self.user_id else own[:, 1:], self.user_domain(batch.domain + 1)[:, None]]
        if self.context is not None:
            parts.append(self.context(batch.context))
        if self.history:
            parts += [self._past(batch.history), self._past(batch.cross_history)]
        return torch.cat(parts, 1)

    def item_fields(self, item: Tensor, domain: Tensor) -> Tensor:
        """Codes and domains (N,) -> (N, item fields, dim)."""
        return torch.cat([self.items(item), self.item_domain(domain + 1)[:, None]], 1)

    def user(self, batch: Batch) -> Tensor:
        """(B, dim) user vectors."""
        vector = self.user_tower(self.user_fields(batch), batch.offsets)
        vector = vector if self.temperature is None else F.normalize(vector, dim=-1) / self.temperature
        return vector if self.bias is None else self.bias.user(vector)

    def item(self, item: Tensor, domain: Tensor) -> Tensor:
        """Codes and domains (...), in any order -> (..., dim) item vectors."""
        codes, owner = item.flatten(), domain.flatten().contiguous()
        order = None if bool((owner[1:] >= owner[:-1]).all()) else owner.argsort(stable=True)
        if order is not None:
            codes, owner = codes[order], owner[order]
        offsets = torch.searchsorted(owner, torch.arange(self.domains + 1, device=owner.device)).tolist()
        vector = self.item_tower(self.item_fields(codes, owner), offsets)
        if order is not None:
            vector = torch.empty_like(vector).index_copy(0, order, vector)
        vector = vector.view(*item.shape, vector.shape[-1])
        vector = vector if self.temperature is None else F.normalize(vector, dim=-1)
        return vector if self.bias is None else self.bias.item(vector, item, domain)

    def _past(self, ids: Tensor | None) -> Tensor:
        """(B, L) -> (B, item fields, dim): the sum over events divided by the root of their number.

        Between mean and sum: longer histories speak louder, but not in proportion.
        """
        assert ids is not None
        if self.training and self.history_dropout > 0:
            ids = ids.masked_fill(torch.rand(ids.shape, device=ids.device) < self.history_dropout, PADDING)
        table = self.items if self.chosen is None else self.chosen
        return table.mean(ids) * (ids != PADDING).sum(1).to(torch.float32).sqrt()[:, None, None]


def _names(fields: Sequence[Field]) -> list[str]:
    """In the order of ``EntityFields``: by kind."""
    return [f.name for f in sorted(fields, key=lambda f: ("categorical", "multi", "numeric").index(f.kind))]


class Residual(nn.Module):
    """A network over flattened fields; its output is added to the sum of the fields, through a gate that starts at 0.

    The sums alone are a factorisation machine between the two sides; the network learns what they miss.

    Args:
        network: (N, fields * dim), offsets -> (N, dim).
        residual: False: the network's output alone.
    """

    def __init__(self, network: nn.Module, residual: bool = True) -> None:
        super().__init__()
        self.network = network
        self.gate = nn.Parameter(torch.zeros(())) if residual else None

    def forward(self, x: Tensor, offsets: Sequence[int]) -> Tensor:
        """(N, fields, dim) -> (N, dim)."""
        out = self.network(x.flatten(1), offsets)
        return out if self.gate is None else self.gate * out + x.sum(1)
