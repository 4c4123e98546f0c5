"""``Bundle``: a folder that holds all that serving needs, read without the data that it was made from.

::

    manifest.json          what is in it: format, schema, domains, stages, and every file's bytes and SHA-256
    card.json  README.md   the model card
    user.ids.arrow  item.ids.arrow            ids in order of their codes
    titles.arrow           a text to show for each item (optional)
    profiles/              what every user had done, see isthmus.serve.profiles
    context/<n>.ids.arrow  categories of the context field number n
    item/<n>.*.arrow       categories and codes of the item field number n, for filters
    catalogue/<d>.arrow    the items of domain number d, and how often each was chosen in training
    <s>/                   stage number s: model.safetensors, and for each domain <d>.onnx, which reads its weights from there;
                           of a retriever also index/<d>/, see isthmus.index

Nothing in it is code: JSON, Arrow, safetensors, ONNX and faiss' own format.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from isthmus import arrow
from isthmus.batch import Needs
from isthmus.errors import ConfigError, IsthmusError, SourceError, nearest
from isthmus.index import Index
from isthmus.schema import FIRST, Schema
from isthmus.serve.feeds import Arrays, Reads
from isthmus.serve.ids import Ids
from isthmus.serve.profiles import Profiles
from isthmus.storage import read_json

FORMAT = 2
MANIFEST = "manifest.json"


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The items that a domain shows.

    Attributes:
        item: (n,) int64 ascending codes.
        count: (n,) int64 how often each was chosen in training.
    """

    item: np.ndarray
    count: np.ndarray

    @cached_property
    def popular(self) -> np.ndarray:
        """(n,) places, the most often chosen first, equal ones in order of their codes."""
        return np.argsort(-self.count, kind="stable")


@dataclass(frozen=True, eq=False)
class ItemField:
    """A categorical or multi-valued field of the items.

    Attributes:
        values: its categories.
        code: (items,) codes, or the flat codes of a multi-valued field.
        offsets: (items + 1,) of a multi-valued field, or None.
    """

    values: Ids
    code: np.ndarray
    offsets: np.ndarray | None

    def has(self, codes: np.ndarray, items: np.ndarray) -> np.ndarray:
        """(N,) bool: which of the items (N,) have one of these categories."""
        mask = np.isin(self.code, codes)
        if self.offsets is None:
            return mask[items]
        before = np.concatenate([[0], np.cumsum(mask)])
        return before[self.offsets[items + 1]] > before[self.offsets[items]]


@dataclass(frozen=True, eq=False)
class Stage:
    """One model of a bundle.

    Attributes:
        name: ``retrieve`` or ``rank``.
        model: its name in ``isthmus.models``.
        task: what it was trained for.
        reads: what its graphs read.
        bounds: scores lie between these; None: anywhere.
        indexes: of a retriever, the items of each domain; None: the model scores candidates.
    """

    name: str
    model: str
    task: str
    reads: Reads
    bounds: tuple[float, float] | None
    sessions: Sequence[Any]
    indexes: Sequence[Index] | None

    def run(self, arrays: Arrays, domain: int, item: np.ndarray | None = None) -> np.ndarray:
        """(B, d) vectors of the users, or the scores (B, C) of candidates."""
        session = self.sessions[domain]
        given = arrays if item is None else {**arrays, "item": item}
        feed = {one.name: given[one.name] for one in session.get_inputs()}
        found = session.run(None, feed)[0]
        return found if self.bounds is None or item is None else found.clip(*self.bounds)


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle in memory; see the module's page for its files.

    Attributes:
        path: its folder.
        manifest: what ``manifest.json`` says.
        schema: of the data it was made from.
        users, items: ids and codes.
        profiles: what every user had done.
        catalogues: of each domain.
        contexts: by context field, its categories; numeric fields have none.
        fields: by name, the items' fields that filters may name.
        titles: a text for each item code, or None.
        stages: one model, or a retriever and the model that ranks what it finds.
    """

    path: Path
    manifest: Mapping[str, Any]
    schema: Schema
    users: Ids
    items: Ids
    profiles: Profiles
    catalogues: Sequence[Catalogue]
    contexts: Mapping[str, Ids]
    fields: Mapping[str, ItemField]
    titles: pl.Series | None
    stages: Sequence[Stage]

    @property
    def name(self) -> str:
        """What it is called, and the fingerprint of all it holds."""
        return f"{self.manifest['name']}@{self.manifest['fingerprint'][:12]}"

    @property
    def domains(self) -> tuple[str, ...]:
        """Their names."""
        return self.schema.domain_names

    @cached_property
    def personal(self) -> bool:
        """Whether anything about a user reaches a model: without it everybody gets the same list."""
        return any(stage.reads.user or stage.reads.needs.histories for stage in self.stages)

    @cached_property
    def until(self) -> int | None:
        """The time of the latest event that it knows, or None."""
        return self.profiles.until

    @classmethod
    def load(cls, path: str | Path, *, threads: int = 1) -> Bundle:
        """Reads a bundle after checking that every file is there and unchanged, and opens its graphs.

        Args:
            path: the folder.
            threads: of one call of a graph.

        Raises:
            SourceError: no bundle, one of another version, or a file that is missing, half-copied or changed.
            ConfigError: ONNX Runtime is not installed, or faiss where an index needs it.
        """
        path = Path(path)
        manifest = check(path)
        try:
            schema = Schema.from_dict(manifest["schema"])
            domains = range(len(schema.domains))
            stages = [_stage(path / str(n), facts, len(domains), threads) for n, facts in enumerate(manifest["stages"])]
            contexts = {f.name: Ids.load(path / "context" / f"{n}.ids.arrow") for n, f in enumerate(schema.context) if f.kind != "numeric"}
            fields = {f.name: _field(path / "item", n, f.kind) for n, f in enumerate(schema.item.fields) if f.kind != "numeric"}
            catalogues = [Catalogue(**arrow.read(path / "catalogue" / f"{d}.arrow")) for d in domains]
            titles = arrow.read_series(path / "titles.arrow") if manifest["titles"] else None
            users, items = (Ids.load(path / f"{name}.ids.arrow") for name in ("user", "item"))
            return cls(path, manifest, schema, users, items, Profiles.load(path / "profiles"), catalogues, contexts, fields, titles, stages)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise SourceError(f"{path} is not whole ({error!r})", "a folder that Isthmus exported", "export it again") from error

    def domain(self, name: str) -> int:
        """The index of a domain.

        Raises:
            ConfigError: no such domain; names the nearest one.
        """
        if name not in self.domains:
            raise ConfigError(f"no domain {name!r}", f"one of {self.domains}", nearest(name, self.domains))
        return self.domains.index(name)

    def title(self, code: int) -> str | None:
        """What to show for an item, where the bundle has titles."""
        return None if self.titles is None else self.titles[code - FIRST]


def check(path: Path) -> dict[str, Any]:
    """The manifest of a bundle all of whose files are as it says.

    Raises:
        SourceError: they are not.
    """
    manifest = read_json(path / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        came = f"{path} holds " + (f"format {manifest.get('format')!r}" if isinstance(manifest, dict) else "a manifest that is no object")
        raise SourceError(came, f"a bundle of format {FORMAT}", "export it again with this version")
    try:
        for name, facts in manifest["files"].items():
            _check_file(path, name, facts)
        if fingerprint(manifest["files"]) != manifest["fingerprint"]:
            raise SourceError(f"{path / MANIFEST} has been changed", "the manifest that Isthmus wrote", "export the bundle again")
    except (KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{path / MANIFEST} is not whole ({error!r})", "the manifest of a bundle", "export it again") from error
    return manifest


def facts_of(path: Path) -> dict[str, Any]:
    """Bytes and SHA-256 of a file, as a manifest keeps them."""
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def fingerprint(files: Mapping[str, Mapping[str, Any]]) -> str:
    """One hash of all files'."""
    return hashlib.sha256("".join(f"{name}:{files[name]['sha256']};" for name in sorted(files)).encode()).hexdigest()


def _check_file(path: Path, name: str, facts: Mapping[str, Any]) -> None:
    file = path / name
    if not file.resolve().is_relative_to(path.resolve()):
        raise SourceError(f"{name!r} lies outside of {path}", "files within the bundle", "export it again")
    if not file.is_file():
        raise SourceError(f"{file} is missing", "every file of the bundle", "copy the whole folder, or export it again")
    size = file.stat().st_size
    if size != facts["bytes"]:
        raise SourceError(f"{file} has {size:,} bytes", f"{facts['bytes']:,} bytes", "copy it again, or export the bundle again")
    if facts_of(file)["sha256"] != facts["sha256"]:
        raise SourceError(f"{file} has been changed", "the file that Isthmus wrote", "copy it again, or export the bundle again")


def _stage(folder: Path, facts: Mapping[str, Any], domains: int, threads: int) -> Stage:
    reads = Reads(Needs(**facts["needs"]), facts["length"], facts["cross"], facts["user"])
    indexes = [Index.load(folder / "index" / str(d)) for d in range(domains)] if facts["retriever"] else None
    sessions = [_session(folder / f"{d}.onnx", threads) for d in range(domains)]
    bounds = None if facts["bounds"] is None else (float(facts["bounds"][0]), float(facts["bounds"][1]))
    return Stage(facts["name"], facts["model"], facts["task"], reads, bounds, sessions, indexes)


def _session(path: Path, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError("ONNX Runtime is not installed", "the extra 'serve'", "pip install 'isthmus[serve]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own family of errors, one for each code
        if isinstance(error, (IsthmusError, MemoryError)):
            raise
        raise SourceError(f"{path} is no graph ({error})", "a graph that Isthmus exported", "export the bundle again") from error


def _field(folder: Path, n: int, kind: str) -> ItemField:
    offsets = arrow.read(folder / f"{n}.offsets.arrow")["value"] if kind == "multi" else None
    return ItemField(Ids.load(folder / f"{n}.ids.arrow"), arrow.read(folder / f"{n}.values.arrow")["value"], offsets)
