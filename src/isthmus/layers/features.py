"""``EntityFields`` and ``Inputs``: the one door from ids to vectors.

A batch holds ids.  What is known of a user or an item (its fields) lies in coded tables inside the model, so
candidates, histories, negatives and whole catalogues become vectors through the same call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from isthmus.batch import Batch
from isthmus.errors import ConfigError
from isthmus.layers.biases import Levels
from isthmus.layers.checks import require_share
from isthmus.layers.from_data import FromData
from isthmus.layers.growing import Growing, Rows
from isthmus.layers.id_rows import IdRows
from isthmus.layers.table import DomainTable, Table
from isthmus.schema import PADDING, UNKNOWN, Entity, Field, Schema

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset, EntityTable


class _Numbers(nn.Module):
    """Numeric values -> value * slope, or a vector of its own where the value is missing (NaN)."""

    def __init__(self, fields: int, dim: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.randn(fields, dim) * 0.1)
        self.missing = nn.Parameter(torch.zeros(fields, dim))

    def forward(self, value: Tensor) -> Tensor:
        """(..., fields) -> (..., fields, dim)."""
        value = value[..., None]
        return torch.where(value.isnan(), self.missing, value.nan_to_num() * self.slope)


class EntityFields(FromData, Growing):
    """Ids of one entity -> the vectors of the id and of all its fields.

    The id and every categorical and multi-valued field share ONE table, so that a lookup is one gather; ``IdRows`` says which rows
    are an id's.  An id that training never saw (code >= ``entity.trained``) takes the id vector of "unknown" and keeps its own fields.

    Args:
        entity, dim: with its sizes, and the width of a vector.
        id_dropout: share of ids replaced by "unknown" in training: this is what trains the unknown id.
        std: standard deviation of the start.  Without id_dropout the unknown id is never trained: it starts, and stays, at 0.

    Raises:
        ConfigError: a schema without sizes, vectors without a number, or an id_dropout outside [0, 1).

    Shapes:
        fields: 1 + len(entity.fields); the id first, then categorical, multi-valued and numeric fields.
    """

    field_rows: Tensor
    numeric: Tensor
    multi_offsets: Tensor
    multi_rows: Tensor

    def __init__(self, entity: Entity, dim: int, *, id_dropout: float = 0.05, std: float = 0.01) -> None:
        super().__init__()
        if entity.size == 0:
            raise ConfigError(f"{entity.name} has no size", "the schema of an encoded data set", "use dataset.schema")
        require_share("id_dropout", id_dropout)
        if dim < 1:
            raise ConfigError(f"dim = {dim}", f"1 or more numbers for each {entity.name}", "16 to 128 are usual")
        self.entity, self.dim, self.id_dropout = entity, dim, id_dropout
        kinds = {kind: [f for f in entity.fields if f.kind == kind] for kind in ("categorical", "multi", "numeric")}
        self.categorical, self.multi, numeric = kinds["categorical"], kinds["multi"], kinds["numeric"]
        self.fields = 1 + len(entity.fields)
        self.ids = IdRows(entity)
        self.starts, rows = _starts([*self.categorical, *self.multi], self.ids.total)
        self.table = Table(rows, dim, std=std)
        if not id_dropout:
            with torch.no_grad():
                self.table.weight[UNKNOWN] = 0.0
        self.numbers = _Numbers(len(numeric), dim) if numeric else None
        self.register_buffer("field_rows", torch.zeros(entity.size, len(self.categorical), dtype=torch.int32))
        self.register_buffer("numeric", torch.full((entity.size, len(numeric)), torch.nan))
        self.register_buffer("multi_offsets", torch.zeros(len(self.multi), entity.size + 1, dtype=torch.int64))
        self.register_buffer("multi_rows", torch.zeros(0, dtype=torch.int32))

    def take(self, dataset: Dataset) -> None:
        """Takes over the data set's coded table of this entity.

        Raises:
            ConfigError: the table has another number of rows than the schema says.
        """
        self.fill(dataset.user_table if self.entity.name == "user" else dataset.item_table)

    def fill(self, table: EntityTable) -> None:
        """Takes over a coded table (codes of the training part; numbers already standardised).

        Raises:
            ConfigError: the table has another number of rows than the schema says.
        """
        found = {len(table.categorical), len(table.numeric)}
        if found != {self.entity.size}:
            came = f"a table of {sorted(found)} rows for entity {self.entity.name!r}"
            raise ConfigError(came, f"{self.entity.size} rows", "build the model with dataset.schema")
        starts = torch.tensor(self.starts[: len(self.categorical)], dtype=torch.int64)
        self.field_rows.copy_(_shift(torch.tensor(table.categorical), starts))
        self.numeric.copy_(torch.tensor(table.numeric))
        flat, bounds, done = [], [], 0
        for field, start in zip(self.multi, self.starts[len(self.categorical) :], strict=True):
            offsets, codes = table.multi[field.name]
            bounds.append(torch.tensor(offsets) + done)
            flat.append(_shift(torch.tensor(codes), start))
            done += len(codes)
        if flat:
            self.multi_offsets.copy_(torch.stack(bounds))
            self.multi_rows = torch.cat(flat).to(self.multi_rows)

    def forward(self, ids: Tensor, known: Tensor | None = None) -> Tensor:
        """Codes (...) -> (..., fields, dim); padding gives zeros throughout.

        Args:
            ids: codes.
            known: ``known_codes(ids)``, of a caller that hides the same ids elsewhere too; None: worked out here.
        """
        parts = [self._joined(self.table(self._rows(ids, known))), *self._late(ids)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -2)

    def total(self, ids: Tensor, known: Tensor | None = None) -> Tensor:
        """Codes (...) -> (..., dim), the sum of ``forward`` over the fields."""
        fields = self(ids, known)
        return fields.squeeze(-2) if self.fields == 1 else fields.sum(-2)  # a sum over one is slower than it sounds

    def mean(self, ids: Tensor) -> Tensor:
        """Codes (B, L) -> (B, fields, dim), the mean of ``forward`` over what is not padding; zeros when all is."""
        bags = self._rows(ids).transpose(1, 2)  # (B, rows of an id + categorical, L): the vectors themselves are never stored
        total = self.table.bag(bags.flatten(0, 1), mode="sum")
        parts = [self._joined(total.view(*bags.shape[:2], self.dim)), *(part.sum(1) for part in self._late(ids))]
        return torch.cat(parts, -2) / (ids != PADDING).sum(1).clamp_min(1)[:, None, None]

    def grow_from(self, old: EntityFields) -> set[str]:
        """Ids and categories of the old table keep their vectors; new ones start at "unknown".  The coded table is the data's."""
        known = old.ids.total
        self.table.weight[:known] = old.table.weight[:known]
        self.table.weight[known : self.ids.total] = old.table.weight[UNKNOWN]
        _grow_fields(self.table, self.starts, old.table, old.starts, [f.size for f in (*old.categorical, *old.multi)])
        return {"table.weight", "field_rows", "numeric", "multi_offsets", "multi_rows"}

    def rows_of(self, domains: Sequence[int], items: Tensor) -> Rows:
        """Of items: the rows of their ids and categories that no other trained item has."""
        if self.entity.name != "item":
            return {}
        known = torch.arange(len(items), device=items.device) < self.entity.trained
        return {"table.weight": self._used(items & known) & ~self._used(~items & known)}

    def _used(self, ids: Tensor) -> Tensor:
        """Trained codes as a mask (size,) -> (rows,) bool: which rows hold them and their categories."""
        ids = ids.to(self.field_rows.device)
        used = ids.new_zeros(self.table.rows)
        used[self.ids(ids.nonzero()[:, 0]).flatten()] = True
        used[self.field_rows[ids].long().flatten()] = True
        for offsets in self.multi_offsets:
            own = ids.repeat_interleave(offsets.diff())
            used[self.multi_rows[offsets[0] : offsets[-1]][own].long()] = True
        used[PADDING] = False
        return used

    def known_codes(self, ids: Tensor) -> Tensor:
        """Codes (...) -> codes of what is known of them: "unknown" for ids training never saw, and for those that id_dropout takes."""
        known = torch.where(ids < self.entity.trained, ids, UNKNOWN)
        if self.training and self.id_dropout > 0:
            dropped = (torch.rand(ids.shape, device=ids.device) < self.id_dropout) & (ids != PADDING)
            known = known.masked_fill(dropped, UNKNOWN)
        return known

    def _rows(self, ids: Tensor, known: Tensor | None = None) -> Tensor:
        """(...) -> (..., rows of an id + categorical) rows of the table."""
        rows = self.ids(self.known_codes(ids) if known is None else known)
        return torch.cat([rows, self.field_rows[ids].long()], -1) if self.categorical else rows

    def _joined(self, vectors: Tensor) -> Tensor:
        """(..., rows of an id + categorical, dim) -> (..., 1 + categorical, dim): an id's rows are added up."""
        each = self.ids.each
        return vectors if each == 1 else torch.cat([vectors[..., :each, :].sum(-2, keepdim=True), vectors[..., each:, :]], -2)

    def _late(self, ids: Tensor) -> list[Tensor]:
        """Multi-valued and numeric fields, each kind (..., its fields, dim)."""
        parts = [self._multi(ids)] if self.multi else []
        if self.numbers is not None:
            parts.append(self.numbers(self.numeric[ids]) * (ids != PADDING)[..., None, None])
        return parts

    def _multi(self, ids: Tensor) -> Tensor:
        """Mean of the vectors of a field's codes; (..., multi-valued fields, dim)."""
        flat = ids.flatten()
        found = []
        for offsets in self.multi_offsets:
            start, length = offsets[flat], offsets[flat + 1] - offsets[flat]
            first = length.cumsum(0) - length
            total = cast("int", length.sum().item())  # not int(...): torch.export follows item() alone
            place = torch.arange(total, device=ids.device) + (start - first).repeat_interleave(length, output_size=total)
            rows = self.multi_rows[place].long()
            found.append(self.table.bag(rows, first))
        return torch.stack(found, 1).view(*ids.shape, len(found), self.dim)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = state_dict.get(prefix + "multi_rows")
        if saved is not None:  # as long as the data are: the schema does not know its size
            self.multi_rows = self.multi_rows.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class ContextFields(Growing):
    """The event's own fields -> their vectors, one table for all codes.

    Args:
        fields: with their sizes.
        dim: width of a vector.
    """

    def __init__(self, fields: tuple[Field, ...], dim: int) -> None:
        super().__init__()
        self.coded = [f for f in fields if f.kind != "numeric"]
        self.numeric = [f for f in fields if f.kind == "numeric"]
        self.starts, rows = _starts(self.coded, 1)
        self.table = Table(rows, dim) if self.coded else None
        self.numbers = _Numbers(len(self.numeric), dim) if self.numeric else None

    def forward(self, context: dict[str, Tensor]) -> Tensor:
        """{field: (B,) or (B, M)} -> (B, fields, dim); coded fields first, then numeric ones."""
        parts = []
        if self.table is not None:
            for field, start in zip(self.coded, self.starts, strict=True):
                codes = context[field.name]
                rows = _shift(codes[:, None] if codes.dim() == 1 else codes, start)
                parts.append(self.table.bag(rows)[:, None])
        if self.numbers is not None:
            parts.append(self.numbers(torch.stack([context[field.name] for field in self.numeric], 1)))
        return torch.cat(parts, 1)

    def grow_from(self, old: ContextFields) -> set[str]:
        """Categories keep their vectors; new ones start at "unknown"."""
        if self.table is None or old.table is None:
            return set()
        _grow_fields(self.table, self.starts, old.table, old.starts, [f.size for f in old.coded])
        return {"table.weight"}

    def rows_of(self, domains: Sequence[int], items: Tensor) -> Rows:
        """Nothing: all domains share it."""
        return {}


class Inputs(nn.Module):
    """What every ranking network reads: user, item, context, domain and history as one vector per candidate.

    The user side is computed once per row and meets the candidates late.  Besides the fields themselves the
    candidate is multiplied by the mean of the history and by the user's id vector (elementwise): what a plain
    MLP would have to learn the hard way.

    Args:
        schema: of an encoded data set.
        dim: width of a field's vector.
        id_dropout: see ``EntityFields``.
        history: read the row's own domain's history.
        cross_history: read the history in the other domains.

    Attributes:
        width: of the output.
    """

    def __init__(self, schema: Schema, dim: int, *, id_dropout: float = 0.05, history: bool = True, cross_history: bool = False) -> None:
        super().__init__()
        self.user = EntityFields(schema.user, dim, id_dropout=id_dropout)
        self.item = EntityFields(schema.item, dim, id_dropout=id_dropout)
        self.domain = DomainTable(len(schema.domains), dim, std=0.1)
        self.context = ContextFields(schema.context, dim) if schema.context else None
        self.histories = [name for name, read in (("history", history), ("cross_history", cross_history)) if read]
        self.levels = Levels(schema)
        pooled = self.item.fields * dim
        self.width = (
            (self.user.fields + self.item.fields + 1 + len(schema.context)) * dim  # fields, domain, context
            + dim  # user id x item id
            + len(self.histories) * (2 * pooled + 1)  # mean, mean x candidate, log length
        )

    def forward(self, batch: Batch) -> Tensor:
        """(B, C, width)."""
        user, item = self.user(batch.user), self.item(batch.item)
        rows = [user.flatten(1), self.domain(batch.domain + 1)]
        if self.context is not None:
            rows.append(self.context(batch.context).flatten(1))
        candidate = item.flatten(2)
        products = [user[:, None, 0] * item[:, :, 0]]
        for name in self.histories:
            ids = getattr(batch, name)
            mean = self.item.mean(ids).flatten(1)
            length = (ids != PADDING).sum(1, keepdim=True)
            rows += [mean, length.to(mean.dtype).log1p() * 0.25]  # about 0..1 for up to 50 events
            products.append(mean[:, None] * candidate)
        row = torch.cat(rows, 1)[:, None].expand(-1, batch.item.shape[1], -1)
        return torch.cat([row, candidate, *products], 2)

    def logit(self, network: nn.Module, batch: Batch) -> Tensor:
        """(B, C) outputs of a network (N, width), offsets -> (N, 1) that starts from the domains' levels, not from 0."""
        x = self(batch).flatten(0, 1)
        return network(x, batch.item_offsets).view(batch.item.shape) + self.levels.level[batch.domain, None]


def _shift(codes: Tensor, start: Tensor | int) -> Tensor:
    """Codes of a field -> rows of a shared table; padding stays row 0."""
    return torch.where(codes == PADDING, PADDING, codes + start)


def _grow_fields(table: Table, starts: list[int], old: Table, old_starts: list[int], old_sizes: list[int]) -> None:
    """Copies each field's rows to where they stand now; its new categories start at its "unknown"."""
    for start, end, before, size in zip(starts, [*starts, len(table.weight)][1:], old_starts, old_sizes, strict=True):
        table.weight[start : start + size] = old.weight[before : before + size]
        table.weight[start + size : end] = old.weight[before + UNKNOWN]


def _starts(fields: list[Field], first: int) -> tuple[list[int], int]:
    """Where each field's codes begin in a shared table, and its number of rows."""
    starts, rows = [], first
    for field in fields:
        starts.append(rows)
        rows += field.size
    return starts, rows
