"""``Dataset``: an encoded data set on disk, memory-mapped.

A folder that ``encode`` wrote::

    manifest.json            format, schema with sizes, split, rows by part and domain, every file's rows and bytes
    user.ids.arrow           ids in order of their codes (item.ids.arrow likewise)
    user/  item/             per field n: n.values.arrow (by code), n.offsets.arrow (multi-valued), n.ids.arrow
    context/                 per field n: n.ids.arrow
    train/ valid/ test/      a file per column, rows ordered by domain, and the domains' offsets
    history/                 see isthmus.data.history
    seen/                    training positives of each user in each domain
    counts/                  training events of each user in each domain
    catalogue.*.arrow        items of each domain, with the first part that knows them
    candidates/              lists given with the data
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.sparse import csr_matrix

from isthmus import arrow
from isthmus.data.fields import load_column
from isthmus.data.history import History
from isthmus.data.rows import EntityTable, Rows
from isthmus.data.split import PARTS, Candidates
from isthmus.data.vocabulary import Vocabulary
from isthmus.errors import CheckpointError, ConfigError, SourceError, nearest
from isthmus.schema import Entity, Field, Schema
from isthmus.segments import Segments
from isthmus.storage import read_json

FORMAT = 2
PART_NAMES = PARTS[:3]
SMALL = 1 << 20  # bytes; up to this size a file's content is checked, not just its length


class Dataset:
    """Integer columns, vocabularies and coded tables; everything learnt was learnt from the training part.

    Attributes:
        path: the folder.
        manifest: what ``manifest.json`` says.
        schema: with sizes.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], schema: Schema) -> None:
        self.path, self.manifest, self.schema = path, manifest, schema
        self._parts: dict[str, Rows] = {}

    @classmethod
    def load(cls, path: str | Path) -> Dataset:
        """Opens a folder that ``encode`` wrote, after checking that every file is there and whole.

        Raises:
            SourceError: the folder is missing or no data set, of another version, or a file is missing,
                truncated or changed.
        """
        path = Path(path)
        manifest = read_json(path / "manifest.json")
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            came = f"format {manifest.get('format')!r}" if isinstance(manifest, dict) else "a manifest that is no object"
            raise SourceError(f"{path} has {came}", f"format {FORMAT}", "encode the data again with this version")
        try:
            for name, facts in manifest["files"].items():
                _check_file(path / name, facts)
            return cls(path, manifest, Schema.from_dict(manifest["schema"]))
        except (KeyError, TypeError, AttributeError, ConfigError, CheckpointError) as error:
            raise SourceError(
                f"{path / 'manifest.json'} is not whole ({error})", "the manifest of a data set", "encode the data again"
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the folder for itself."""
        return Dataset.load, (self.path.absolute(),)

    def __repr__(self) -> str:
        rows = ", ".join(f"{name} {sum(self.manifest['rows'][name]):,}" for name in PART_NAMES)
        return f"Dataset({str(self.path)!r}, {len(self.schema.domains)} domains, {rows} rows)"

    @cached_property
    def user_vocabulary(self) -> Vocabulary:
        """User ids and codes."""
        return Vocabulary.load(self.path / "user.ids.arrow", self.schema.user.trained)

    @cached_property
    def item_vocabulary(self) -> Vocabulary:
        """Item ids and codes."""
        return Vocabulary.load(self.path / "item.ids.arrow", self.schema.item.trained)

    @cached_property
    def user_table(self) -> EntityTable:
        """Coded user fields."""
        return self._table(self.schema.user)

    @cached_property
    def item_table(self) -> EntityTable:
        """Coded item fields."""
        return self._table(self.schema.item)

    def field_vocabulary(self, where: Literal["user", "item", "context"], name: str) -> Vocabulary:
        """Categories and codes of a categorical or multi-valued field.

        Raises:
            ConfigError: no such field, or a numeric one.
        """
        fields = self._fields(where)
        known = [f.name for f in fields if f.kind != "numeric"]
        if name not in known:
            raise ConfigError(f"{name!r} is no {where} field with categories", f"one of {known}", nearest(name, known))
        place = [f.name for f in fields].index(name)
        return Vocabulary.load(self.path / where / f"{place}.ids.arrow")

    def scaler(self, where: Literal["user", "item", "context"], name: str) -> tuple[float, float]:
        """Mean and standard deviation that a numeric field was standardised with.

        Raises:
            ConfigError: no such numeric field.
        """
        known = self.manifest["scalers"][where]
        if name not in known:
            raise ConfigError(f"{name!r} is no numeric {where} field", f"one of {sorted(known)}", nearest(name, known))
        mean, deviation = known[name]
        return mean, deviation

    def part(self, name: str) -> Rows:
        """Rows of ``train``, ``valid`` or ``test``.

        Raises:
            ConfigError: no such part.
        """
        _check_part(name)
        if name not in self._parts:
            self._parts[name] = Rows.load(self.path / name, self.schema)
        return self._parts[name]

    @cached_property
    def history(self) -> History:
        """Positive events by user and domain."""
        return History.load(self.path / "history")

    @cached_property
    def seen(self) -> Segments:
        """Items of each user's training positives in each domain; see ``key``."""
        return Segments.load(self.path / "seen")

    def key(self, domain: np.ndarray | int, user: np.ndarray) -> np.ndarray:
        """(B,) int64 ``user * domains + domain``: the keys of ``seen``."""
        return np.asarray(user, np.int64) * len(self.schema.domains) + domain

    def known(self, user: np.ndarray, domain: np.ndarray | int, item: np.ndarray) -> np.ndarray:
        """(B, C) bool: which items (B, C) are among the users' training positives in the domain."""
        return self.seen.contains(self.key(domain, user), item)

    def catalogue(self, domain: int, part: str = "train") -> np.ndarray:
        """Items that a domain may show.

        Those declared to be shown, and those of its events up to and including the part, with its given lists.

        Returns:
            Ascending int32 codes.

        Raises:
            ConfigError: no such part.
        """
        _check_part(part)
        offsets, columns = self._catalogue
        own = slice(int(offsets[domain]), int(offsets[domain + 1]))
        return columns["item"][own][columns["part"][own] <= PARTS.index(part)]

    def popularity(self, domain: int) -> np.ndarray:
        """(item.size,) float64 number of training positives of each item in a domain."""
        rows = self.part("train")
        own = rows.of(domain)
        item = rows.item[own][rows.positive(self.schema.label, own)]
        return np.bincount(item, minlength=self.schema.item.size).astype(np.float64)

    def positives(self, domain: int | None = None) -> csr_matrix:
        """(user.size, item.size) float32 counts of training positives in a domain; None: in all."""
        return self.matrix(domain, "count")

    def matrix(self, domain: int | None = None, kind: Literal["count", "rating"] = "count") -> csr_matrix:
        """Training positives as a matrix.

        Args:
            domain: its index; None: all domains together.
            kind: ``count`` of events, or the mean ``rating``.

        Returns:
            (user.size, item.size) float32; a stored entry for every pair with an event, even at rating 0.

        Raises:
            ConfigError: ratings of a data set without any.
        """
        rows = self.part("train")
        own = rows.of(domain)
        keep = rows.positive(self.schema.label, own)
        where, shape = (rows.user[own][keep], rows.item[own][keep]), (self.schema.user.size, self.schema.item.size)
        count = csr_matrix((np.ones(len(where[0]), np.float32), where), shape=shape)
        if kind == "count":
            return count
        if self.schema.label != "rating" or rows.label is None:
            raise ConfigError(f"ratings of a data set with {self.schema.label!r} labels", "rating labels", 'use kind="count"')
        total: Any = csr_matrix((rows.label[own], where), shape=shape)
        total.data /= count.data  # both have summed the same repeated pairs
        return total

    def events_of(self, user: np.ndarray, domain: np.ndarray | int) -> np.ndarray:
        """(B,) int64 number of training events (of any label) of each user in the domain."""
        known, count = self._counts["key"], self._counts["count"]
        key = self.key(domain, user)
        at = np.minimum(np.searchsorted(known, key), len(known) - 1)
        return np.where(known.take(at) == key, count.take(at), 0)

    def candidates(self, part: str) -> Candidates | None:
        """The lists given for a part, with codes; None without any.

        Raises:
            ConfigError: no such part.
        """
        _check_part(part)
        return Candidates.load(self.path / "candidates" / part) if part in self.manifest["candidates"] else None

    @cached_property
    def _counts(self) -> dict[str, np.ndarray]:
        return {name: arrow.read(self.path / "counts" / f"{name}.arrow")["value"] for name in ("key", "count")}

    @cached_property
    def _catalogue(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return arrow.read(self.path / "catalogue.offsets.arrow")["offset"], arrow.read(self.path / "catalogue.items.arrow")

    def _fields(self, where: str) -> tuple[Field, ...]:
        return {"user": self.schema.user.fields, "item": self.schema.item.fields, "context": self.schema.context}[where]

    def _table(self, entity: Entity) -> EntityTable:
        columns = {f: load_column(self.path / entity.name, str(n), f) for n, f in enumerate(entity.fields)}

        def stacked(kind: str, dtype: type) -> np.ndarray:
            chosen = [values for f, values in columns.items() if f.kind == kind]
            return np.stack(chosen, axis=1) if chosen else np.zeros((entity.size, 0), dtype)

        multi = {f.name: values for f, values in columns.items() if f.kind == "multi"}
        return EntityTable(stacked("categorical", np.int32), stacked("numeric", np.float32), multi)


def _check_part(name: str) -> None:
    if name not in PART_NAMES:
        raise ConfigError(f"no part {name!r}", f"one of {PART_NAMES}", nearest(name, PART_NAMES))


def file_facts(path: Path) -> dict[str, Any]:
    """Bytes of a file, and the hash of a small one."""
    size = path.stat().st_size
    return {"bytes": size} | ({"sha256": hashlib.sha256(path.read_bytes()).hexdigest()} if size <= SMALL else {})


def _check_file(path: Path, facts: dict[str, Any]) -> None:
    """Refuses a file that is not as the manifest says."""
    if not path.is_file():
        raise SourceError(f"{path} is missing", "every file of the data set", "copy the whole folder, or encode the data again")
    size = path.stat().st_size
    if size != facts["bytes"]:
        raise SourceError(f"{path} has {size:,} bytes", f"{facts['bytes']:,} bytes", "copy it again, or encode the data again")
    if "sha256" in facts and file_facts(path)["sha256"] != facts["sha256"]:
        raise SourceError(f"{path} has been changed", "the file that Isthmus wrote", "copy it again, or encode the data again")
