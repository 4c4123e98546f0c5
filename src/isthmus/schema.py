"""What the columns mean: ``Field``, ``Entity``, ``Domain`` -> ``Schema``; to and from JSON.

A schema is declared once with the data.  ``encode`` fills in the sizes, and a model is built from the
result alone.  Nothing here imports numpy, polars or torch.

Codes, everywhere: 0 is padding (a zero vector, masked), 1 is unknown.  An entity's codes are::

    0        padding
    1        unknown: an id that this data set has never seen
    2 ..     ids of the training part, most frequent first    (codes < trained have an embedding of their own)
    trained  ids known from a table or from a later part: an identity of their own and their own
             features, but the id embedding of "unknown"
    size     (end)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from isthmus.errors import CheckpointError, ConfigError, nearest

PADDING = 0
UNKNOWN = 1
FIRST = 2  # the first code of a real id

FieldKind = Literal["categorical", "numeric", "multi"]
LabelKind = Literal["implicit", "click", "rating"]
FIELD_KINDS: tuple[FieldKind, ...] = ("categorical", "numeric", "multi")
LABEL_KINDS: tuple[LabelKind, ...] = ("implicit", "click", "rating")
TIME_UNITS = ("s", "ms", "us", "ns", "step")


@dataclass(frozen=True, slots=True)
class Field:
    """One feature of a user, an item or an event.

    Attributes:
        name: the column.
        kind: ``categorical`` (one code), ``numeric`` (standardised on train) or ``multi`` (a list of codes).
        size: number of codes, padding and unknown included; 0 before ``encode`` and for numeric fields.
    """

    name: str
    kind: FieldKind = "categorical"
    size: int = 0

    def __post_init__(self) -> None:
        if self.kind not in FIELD_KINDS:
            raise ConfigError(f"field {self.name!r} has kind {self.kind!r}", f"one of {FIELD_KINDS}", nearest(str(self.kind), FIELD_KINDS))


@dataclass(frozen=True, slots=True)
class HashedIds:
    """Ids that share rows of a model's table: the first half of the rows are the most frequent ids' own, the others are shared.

    Attributes:
        rows: of the table.
        ids: codes below this one take part; those that came later, in a data set that extends this one, have rows of their own.
    """

    rows: int
    ids: int

    def __post_init__(self) -> None:
        least = 4 * (math.isqrt(max(self.ids - 1, 0)) + 1)
        whole = isinstance(self.rows, int)  # pyright: ignore[reportUnnecessaryIsInstance]  # from a command line or a file: anything
        if not whole or not least <= self.rows < self.ids:
            came = f"{self.rows!r} rows for {self.ids:,} ids"
            raise ConfigError(
                came, f"a whole number, {least:,} at least, and fewer than ids", "choose another number, or leave it out: a row for each"
            )

    @property
    def own(self) -> int:
        """Codes below this one have a row of their own."""
        return self.rows // 2

    @property
    def remainders(self) -> int:
        """The divisor: as large as leaves a row for every quotient."""
        shared, ids = self.rows - self.own, self.ids - self.own
        found = (shared + math.isqrt(shared * shared - 4 * ids)) // 2
        while found - (-ids // found) > shared:  # found + ids / found, rounded up
            found -= 1
        return found


@dataclass(frozen=True, slots=True)
class Entity:
    """Users, or items: an id and a table of fields.

    Attributes:
        name: ``user`` or ``item``.
        fields: the fields of its table (the id itself is not one of them).
        trained: codes below this one were seen in training; 0 before ``encode``.
        size: number of codes in all; 0 before ``encode``.
        hashed: of a model's schema alone: the ids' rows are shared; None: each trained id has its own.
    """

    name: str
    fields: tuple[Field, ...] = ()
    trained: int = 0
    size: int = 0
    hashed: HashedIds | None = None


@dataclass(frozen=True, slots=True)
class Domain:
    """A market, scenario, category or app.  Its index is its place in ``Schema.domains``."""

    name: str


@dataclass(frozen=True, slots=True)
class Schema:
    """What a data set holds, and after ``encode`` how large it is: all that a model's constructor needs.

    Attributes:
        user, item: the two entities.
        domains: in order of their index.
        label: ``implicit`` (every event is a positive), ``click`` (0 or 1) or ``rating`` (a number).
        timed: events have a time.
        time_unit: unit of the integer times; ``step`` means that only the order counts.
        behaviours: names of the behaviour types, in order of their code (code 0 is padding, the first name has code 1).
        context: fields that vary by event.
        rating_range: lowest and highest training label of a rating data set.
    """

    user: Entity = Entity("user")
    item: Entity = Entity("item")
    domains: tuple[Domain, ...] = ()
    label: LabelKind = "implicit"
    timed: bool = False
    time_unit: str = "s"
    behaviours: tuple[str, ...] = ()
    context: tuple[Field, ...] = ()
    rating_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.label not in LABEL_KINDS:
            raise ConfigError(f"label kind {self.label!r}", f"one of {LABEL_KINDS}", nearest(str(self.label), LABEL_KINDS))
        if self.time_unit not in TIME_UNITS:
            raise ConfigError(f"time unit {self.time_unit!r}", f"one of {TIME_UNITS}", nearest(self.time_unit, TIME_UNITS))
        for place, names in (
            ("domains", [d.name for d in self.domains]),
            ("user fields", [f.name for f in self.user.fields]),
            ("item fields", [f.name for f in self.item.fields]),
            ("context fields", [f.name for f in self.context]),
        ):
            double = sorted({n for n in names if names.count(n) > 1})
            if double:
                raise ConfigError(f"{place}: {double} named more than once", "unique names", "rename or remove the second one")

    @property
    def domain_names(self) -> tuple[str, ...]:
        """Names of the domains, in order of their index."""
        return tuple(d.name for d in self.domains)

    def domain_index(self, name: str) -> int:
        """Index of a domain by name.

        Raises:
            ConfigError: no such domain.
        """
        try:
            return self.domain_names.index(name)
        except ValueError:
            raise ConfigError(f"unknown domain {name!r}", f"one of {self.domain_names}", nearest(name, self.domain_names)) from None

    def hashed(self, user: HashedIds | None, item: HashedIds | None) -> Schema:
        """The schema of the same data for a model whose ids share rows, or (None) do not."""
        return replace(self, user=replace(self.user, hashed=user), item=replace(self.item, hashed=item))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        raw = dataclasses.asdict(self)
        for side in ("user", "item"):
            if raw[side]["hashed"] is None:
                del raw[side]["hashed"]
        return raw

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Schema:
        """The inverse of ``to_dict``.

        Raises:
            CheckpointError: a key is missing or unknown.
        """
        try:
            raw = dict(raw)
            for side in ("user", "item"):
                entity = dict(raw[side])
                entity["fields"] = tuple(Field(**f) for f in entity["fields"])
                entity["hashed"] = HashedIds(**entity["hashed"]) if entity.get("hashed") else None
                raw[side] = Entity(**entity)
            raw["domains"] = tuple(Domain(**d) for d in raw["domains"])
            raw["context"] = tuple(Field(**f) for f in raw["context"])
            raw["behaviours"] = tuple(raw["behaviours"])
            raw["rating_range"] = tuple(raw["rating_range"]) if raw.get("rating_range") else None
            return cls(**raw)
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"a schema that cannot be read ({error})", "the output of Schema.to_dict", "encode the data again"
            ) from error

    def fingerprint(self) -> str:
        """A short hash: two data sets with the same one have the same codes' shapes, whatever rows a model gives them."""
        return hashlib.sha256(json.dumps(self.hashed(None, None).to_dict(), sort_keys=True).encode()).hexdigest()[:16]
