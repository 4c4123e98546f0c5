"""``Scores``: the table of scored rows, in memory and on disk.  Another library's scores enter here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import narwhals as nw
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from isthmus.errors import ColumnError, ConfigError, DataError, SourceError
from isthmus.storage import whole_file

Kind = Literal["rows", "lists", "full", "sampled"]
TYPES: dict[str, Any] = {
    "row": pl.Int64,
    "group": pl.Int64,
    "user": pl.Int32,
    "item": pl.Int32,
    "domain": pl.String,
    "label": pl.Float32,
    "score": pl.Float32,
    "state": pl.String,
    "rank": pl.Float64,
    "tied": pl.Int32,
    "relevant": pl.Int32,
}
NAMES = ("domain", "state")
REQUIRED = ("user", "item", "domain", "label", "score")
KEY = b"isthmus"


@dataclass(frozen=True, eq=False)
class Scores:
    """Scored rows.

    Attributes:
        frame: one line per scored item, with columns

            - ``row``: row of the event in the events, -1 for items that stand for no event;
            - ``group``: what is ranked together: the query of ranked tasks (a user of a domain, or an event), else the user;
            - ``user``, ``item``: codes (any ids in scores from elsewhere); ``domain``: name;
            - ``label``: 0/1, or the rating; in ranked tasks 1 for the relevant;
            - ``score``: higher is better; the logit of a click, or the rating itself;
            - ``state``: the user's training events in the domain: ``new`` (0), ``few`` (1 to 5) or ``many``; of a split by
              ``cold_users``, where all who are judged are new, her training events in the other domains: ``source <5``,
              ``source 5-19`` or ``source 20+``;
            - ``relevant`` (ranked tasks): number of relevant items of the query, listed or not;
            - ``rank`` (kind ``full``): exact rank from 1 in the whole catalogue, ties sharing their mean; infinite
              for relevant items outside it, whose score is the lowest float32;
            - ``tied`` (kind ``full``): how many items of the ranking have this score, itself included; 1 outside the
              catalogue.  Metrics take the expectation over the orders of tied items.  Without it (scores from elsewhere,
              older files) a rank stands for itself: only lines stored with the same rank are tied.
        kind: ``rows`` (logged rows), ``lists`` (given lists), ``full`` (the whole catalogue, of which the first places
            and all relevant items are stored) or ``sampled`` (relevant and a few sampled items).
        task, part: what was scored.
        lists: the name of the lists in each domain, for kinds ``lists`` and ``sampled``.
        catalogue: the number of items in each domain's catalogue, for kind ``full``; None: not known.
        places: how many first places of a query are kept, for kind ``full``; None: not known, taken as enough.
    """

    frame: pl.DataFrame
    kind: Kind
    task: str = ""
    part: str = ""
    lists: Mapping[str, str] | None = None
    catalogue: Mapping[str, int] | None = None
    places: int | None = None

    @property
    def name(self) -> str:
        """What the numbers stand on, in words."""
        if self.lists:
            return ", ".join(dict.fromkeys(self.lists.values()))
        return {"rows": "logged rows", "full": "full catalogue"}.get(self.kind, self.kind)

    def __len__(self) -> int:
        return self.frame.height

    @classmethod
    def from_frame(
        cls,
        frame: Any,
        kind: Kind = "rows",
        *,
        task: str = "",
        part: str = "",
        lists: Mapping[str, str] | None = None,
        catalogue: Mapping[str, int] | None = None,
        places: int | None = None,
    ) -> Scores:
        """Another library's scores.

        Args:
            frame: any frame with columns user, item, domain, label and score; group, row, state, rank, tied and relevant
                where there are any.  Without ``group``, a kind other than ``rows`` has one query per user and domain.  To be
                compared with a model's own scores, users must be its codes.
            kind, task, part, lists, catalogue, places: see the class.

        Raises:
            ColumnError: a column is missing or of the wrong type.
            DataError: a label or score that is no finite number, a missing user, item or domain, or ``tied`` that contradicts
                the ranks.
            ConfigError: an unknown kind.
        """
        if kind not in get_args(Kind):
            raise ConfigError(f"scores of kind {kind!r}", f"one of {get_args(Kind)}", "choose one of them")
        table = nw.from_native(frame, eager_only=True).to_polars()
        missing = [name for name in (*REQUIRED, *(("rank", "relevant") if kind == "full" else ())) if name not in table.columns]
        if missing:
            raise ColumnError(f"scores without {missing}", f"columns {REQUIRED}; rank and relevant for full rankings", "add or rename them")
        try:
            table = table.with_columns(pl.col(name).cast(TYPES[name]) for name in _typed(table))
        except pl.exceptions.PolarsError as error:
            raise ColumnError(f"a column of the wrong type ({error})", f"{TYPES}", "convert it") from error
        bad = table.filter(pl.any_horizontal(pl.col(*REQUIRED).is_null()) | ~pl.all_horizontal(pl.col("label", "score").is_finite()))
        if bad.height:
            raise DataError(
                f"{bad.height:,} lines with a missing value or a score or label that is not finite", "numbers", "drop or repair them"
            )
        if "group" not in table.columns:
            by = pl.struct("user") if kind == "rows" else pl.struct("user", "domain")
            table = table.with_columns((by.rank("dense") - 1).cast(pl.Int64).alias("group"))
        if "row" not in table.columns:
            table = table.with_columns(pl.lit(-1, pl.Int64).alias("row"))
        if kind == "full" and "tied" in table.columns:
            _check_ties(table)
        return cls(table.select(*(name for name in TYPES if name in table.columns)), kind, task, part, lists, catalogue, places)

    @classmethod
    def concat(cls, several: Sequence[Scores]) -> Scores:
        """Scores of different domains of one part as one table.

        Raises:
            ConfigError: there are none, or they differ in kind, task, part or the places kept.
        """
        heads = {(s.kind, s.task, s.part, s.places) for s in several}
        if len(heads) != 1:
            raise ConfigError(f"scores of {sorted(heads)} to be joined", "one kind, task and part", "join scores of one part only")
        first = several[0]
        lists = {domain: name for s in several for domain, name in (s.lists or {}).items()}
        catalogue = {domain: size for s in several for domain, size in (s.catalogue or {}).items()}
        frame = pl.concat([s.frame for s in several])
        return cls(frame, first.kind, first.task, first.part, lists or None, catalogue or None, first.places)

    def save(self, path: str | Path) -> None:
        """Writes one parquet file, whole or not at all.

        Raises:
            StorageError: the disk is full or the folder cannot be written.
        """
        head: dict[str, Any] = {name: getattr(self, name) for name in ("kind", "task", "part", "places")}
        head |= {name: None if (value := getattr(self, name)) is None else dict(value) for name in ("lists", "catalogue")}
        table = self.frame.to_arrow().replace_schema_metadata({KEY: json.dumps(head).encode()})
        with whole_file(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Reads what ``save`` wrote, or another library's parquet file with the same columns.

        Without the head that ``save`` writes, the kind is ``full`` where there are ranks, ``lists`` where there is the
        column ``relevant``, and ``rows`` otherwise; ``from_frame`` says it freely.

        Raises:
            SourceError: the file is missing, truncated or not parquet.
            DataError: see ``from_frame``.
        """
        try:
            table = pq.read_table(path, read_dictionary=list(NAMES))  # as codes: many times faster than as texts
            head = json.loads((table.schema.metadata or {}).get(KEY, b"null"))
        except FileNotFoundError:
            raise SourceError(f"{path} is missing", "a parquet file of scores", "check the path, or score again") from None
        except (pa.ArrowException, OSError, ValueError) as error:
            raise SourceError(f"{path} cannot be read ({error})", "a parquet file of scores", "score again") from error
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        frame = frame.with_columns(pl.col(name).cast(pl.String) for name in NAMES if frame.schema.get(name) == pl.Categorical)
        if head is not None:
            return cls(frame, **head)
        kind: Kind = "full" if "rank" in frame.columns else "lists" if "relevant" in frame.columns else "rows"
        return cls.from_frame(frame, kind)


def _check_ties(table: pl.DataFrame) -> None:
    """Refuses blocks of equal scores that cannot be: less than one item, a place before the first, more lines than items."""
    tied, rank, lines = pl.col("tied"), pl.col("rank"), pl.len().over("domain", "group", "rank")
    wrong = table.filter(tied.is_null() | (tied < 1) | (rank < (tied + 1) / 2) | (rank.is_finite() & (lines > tied)))
    if wrong.height:
        raise DataError(
            f"{wrong.height:,} lines whose rank and tied cannot be, first rank {wrong['rank'][0]} and tied {wrong['tied'][0]}",
            "tied: how many items share the score (at least 1); rank: their mean rank, at least (tied + 1) / 2",
            "correct them, or leave tied out",
        )


def _typed(table: pl.DataFrame) -> list[str]:
    """Columns to cast: ids of users and items stay as they are, numbers and names do not."""
    return [name for name in TYPES if name in table.columns and name not in ("user", "item")]
