"""``Index``: the items of one domain, searched for the largest dot products.

``exact`` looks at every item, in blocks (torch alone).  ``ivf`` (inverted lists) and ``hnsw`` (a graph of neighbours) are
faiss', look at some, and are used only with a recall that was measured on the vectors themselves: the same settings find
99.9 % of what they should on clustered vectors and 23 % on others.

On disk, a folder::

    manifest.json         kind, parameters, measured recall, what it was made of, and every file's SHA-256
    items.arrow           item codes
    vectors.safetensors   their vectors
    index.faiss           of ivf and hnsw
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from isthmus import arrow
from isthmus.errors import ConfigError, DataError, SourceError, nearest
from isthmus.layers import neighbours
from isthmus.layers.table import halved
from isthmus.layers.topk import Pairs, dots, scan
from isthmus.segments import places
from isthmus.storage import read_json, whole_folder, write_json

Kind = Literal["auto", "exact", "ivf", "hnsw"]
FORMAT = 1
MOST_SHORT = 0.05  # share of queries for which an approximate search finds too little, so that they are searched exactly
EXACT_UP_TO = 50_000  # items; below, exact search takes less than 0.3 ms a query on one core, and a faster one saves little


@dataclass(frozen=True, eq=False)
class Index:
    """Vectors of n items, and a way to search them.

    Attributes:
        item: (n,) int64 item codes, ascending.
        vectors: (n, d) float32, or float16 (``half``).
        kind: ``exact``, ``ivf`` or ``hnsw``.
        parameters: ``lists`` and ``probes`` of ivf; ``links``, ``construction`` and ``search`` of hnsw.
        recall: the share of the exact first k that it finds, measured when it was built; 1 when exact.
        k: places at which recall was measured, and the most that can be asked for; 0: exact, any number.
        note: how it was chosen, in words.
        about: what it was made of (model, domain, data), see ``isthmus.retrieve``.
    """

    item: np.ndarray
    vectors: Tensor
    kind: Literal["exact", "ivf", "hnsw"] = "exact"
    parameters: Mapping[str, int] = field(default_factory=dict[str, int])
    recall: float = 1.0
    k: int = 0
    note: str = "exact"
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])
    searcher: Any = None

    def __len__(self) -> int:
        return len(self.item)

    def at(self, places: Tensor | slice) -> Tensor:
        """(..., d) float32, the vectors at some places."""
        return self.vectors[places].float()

    def half(self) -> Index:
        """The same items, their vectors in half precision; what faiss holds of them stays as it is.

        Raises:
            ConfigError: a number that is too large for it.
        """
        return replace(self, vectors=halved("item vectors", self.vectors))

    @classmethod
    def build(
        cls,
        vectors: Tensor,
        kind: Kind = "auto",
        *,
        item: np.ndarray | None = None,
        queries: Tensor | None = None,
        hide: Pairs | None = None,
        k: int = 100,
        target_recall: float = 0.95,
        about: Mapping[str, Any] | None = None,
    ) -> Index:
        """Builds an index whose recall is known.

        ``probes`` of ivf or ``search`` of hnsw are doubled until recall@k is at least the target by two standard errors; where
        that would cost about as much as looking at everything, the index is exact, and its ``note`` says why.  Found counts
        what scores as high as the exact k-th item does.

        Args:
            vectors: (n, d).
            kind: ``auto``: exact up to 50,000 items and without queries, else ivf.
            item: (n,) ascending codes; None: 0 to n - 1.
            queries: (Q, d) vectors such as will be searched for, some hundreds; ivf and hnsw need them.
            hide: rows of ``queries`` and items left out of the answers, as when searching.
            k, target_recall: what to reach.
            about: kept along.

        Raises:
            ConfigError: an unknown kind, no queries, a target or k out of range, or faiss is not installed.
            DataError: vectors that are not finite, or not as many as items.
        """
        if kind not in get_args(Kind):
            raise ConfigError(f"index {kind!r}", f"one of {get_args(Kind)}", nearest(kind, get_args(Kind)))
        if k < 1 or not 0 < target_recall <= 1:
            raise ConfigError(f"k = {k}, target_recall = {target_recall}", "k from 1, a target above 0 and up to 1", "correct them")
        codes = np.arange(len(vectors)) if item is None else np.asarray(item, np.int64)
        if len(codes) != len(vectors) or (np.diff(codes) <= 0).any():
            raise DataError(f"{len(codes)} items for {len(vectors)} vectors", "one ascending code for each", "sort them by code")
        if not bool(vectors.isfinite().all()):
            raise DataError("vectors that are not finite", "finite numbers", "look for a training that diverged (nan, inf)")
        exact = cls(codes, vectors.float().contiguous(), about=dict(about or {}))
        if kind == "auto":
            kind = "exact" if len(codes) <= EXACT_UP_TO or queries is None or not len(queries) or not neighbours.installed() else "ivf"
        if kind == "exact" or not len(codes):
            return replace(exact, note=f"exact search of {len(codes):,} items")
        if queries is None or not len(queries):
            raise ConfigError(f"index {kind!r} without queries", "vectors such as will be searched for", "pass queries, or use 'exact'")
        return _tuned(exact, kind, queries, hide, k, target_recall)

    def search(self, queries: Tensor, k: int, hide: Pairs | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The k items of largest dot product with each query.

        Args:
            queries: (Q, d).
            k: how many; of ivf and hnsw at most ``self.k``.
            hide: rows and items left out of the answers, both (P,); unknown items do not matter.

        Returns:
            (Q, k) int64 codes, best first, padded with 0, and (Q, k) float32 scores, padded with -inf.

        Raises:
            ConfigError: queries of another width, or a k at which recall was not measured.
        """
        if queries.ndim != 2 or queries.shape[1] != self.vectors.shape[1]:
            raise ConfigError(f"queries of shape {tuple(queries.shape)}", f"(Q, {self.vectors.shape[1]})", "use the index of this model")
        if k < 1 or (self.searcher is not None and k > self.k):
            expected = f"1 to {self.k}, where its recall was measured" if self.searcher is not None else "1 or more"
            raise ConfigError(f"k = {k} of an index of kind {self.kind!r}", expected, f"build it with k={max(k, 1)}")
        if hide is not None:
            hide = _columns(self.item, hide)
        queries = queries.detach().float()
        score, column = self._exact(queries, k, hide) if self.searcher is None else self._approximate(queries, k, hide)
        return np.where(column < 0, 0, self.item.take(column, mode="clip") if len(self) else 0), score

    def _exact(self, queries: Tensor, k: int, hide: Pairs | None) -> tuple[np.ndarray, np.ndarray]:
        """Scores and columns, the latter -1 where there are too few."""
        device = self.vectors.device
        score, column = scan(len(queries), len(self), k, dots(queries.to(device), self.at), hide, device)
        return score.cpu().numpy(), column.cpu().numpy()

    def _approximate(self, queries: Tensor, k: int, hide: Pairs | None) -> tuple[np.ndarray, np.ndarray]:
        """Like ``_exact``, which takes over the rows that too little is found for."""
        asked = queries.cpu().numpy()
        score, column, short = neighbours.without(self.searcher, self.kind, self.parameters, asked, k, hide, len(self))
        if len(short):
            score[short], column[short] = self._exact(queries[torch.from_numpy(short)], k, _of_rows(hide, short))
        return score, column

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Writes a folder, whole or not at all.

        Raises:
            StorageError: it exists and may not be overwritten, the disk is full, or it cannot be written.
        """
        with whole_folder(folder, overwrite=overwrite) as path:
            arrow.write(path / "items.arrow", {"item": self.item})
            save_file({"vectors": self.vectors.cpu()}, path / "vectors.safetensors")
            if self.searcher is not None:
                neighbours.faiss().write_index(self.searcher, str(path / "index.faiss"))
            files = {file.name: _sha256(file) for file in sorted(path.iterdir())}
            facts = {name: getattr(self, name) for name in ("kind", "recall", "k", "note")}
            facts |= {"parameters": dict(self.parameters), "about": dict(self.about)}
            facts |= {"format": FORMAT, "items": len(self), "dim": self.vectors.shape[1], "files": files}
            write_json(path / "manifest.json", facts | {"fingerprint": _fingerprint(files)})

    @classmethod
    def load(cls, folder: str | Path) -> Index:
        """Reads what ``save`` wrote, after checking that every file is there and unchanged.

        Raises:
            SourceError: the folder is missing, no index, of another version, or a file is missing or changed.
            ConfigError: faiss is needed and not installed.
        """
        path = Path(folder)
        manifest = read_json(path / "manifest.json")
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise SourceError(f"{path} holds no index of format {FORMAT}", "a folder that Index.save wrote", "build the index again")
        try:
            for name, sha in manifest["files"].items():
                if not (path / name).is_file() or _sha256(path / name) != sha:
                    raise SourceError(f"{path / name} is missing or changed", "the file that Isthmus wrote", "build the index again")
            item, vectors = arrow.read(path / "items.arrow")["item"], load_file(path / "vectors.safetensors")["vectors"]
            whole = (len(item), *vectors.shape) == (manifest["items"], manifest["items"], manifest["dim"])
            if not whole or manifest["fingerprint"] != _fingerprint(manifest["files"]) or manifest["kind"] not in get_args(Kind)[1:]:
                raise SourceError(f"{path} does not fit its manifest", "the folder that Isthmus wrote", "build the index again")
            facts = {name: manifest[name] for name in ("kind", "recall", "k", "note", "parameters", "about")}
        except (KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise SourceError(f"{path} is not whole ({error})", "a folder that Index.save wrote", "build the index again") from error
        searcher = None if facts["kind"] == "exact" else neighbours.faiss().read_index(str(path / "index.faiss"))
        return cls(item, vectors, searcher=searcher, **facts)


def _tuned(exact: Index, kind: Literal["ivf", "hnsw"], queries: Tensor, hide: Pairs | None, k: int, target: float) -> Index:
    """The fastest setting of a kind that finds enough, or else the exact index."""
    k, queries = min(k, len(exact)), queries.detach().float()
    columns = None if hide is None else _columns(exact.item, hide)
    searcher, fixed, name, values = neighbours.make(exact.vectors.cpu().numpy(), kind)
    truth, _ = exact._exact(queries, k, columns)
    best = 0.0
    for value in values:
        index = replace(exact, kind=kind, parameters=fixed | {name: value}, k=k, searcher=searcher)
        score, _, short = neighbours.without(searcher, kind, index.parameters, queries.cpu().numpy(), k, columns, len(exact))
        best = max(best, neighbours.recall(truth, score)[0])
        score[short] = truth[short]  # these are searched exactly
        mean, error = neighbours.recall(truth, score)
        if mean - 2 * error >= target and len(short) <= MOST_SHORT * len(queries):
            return replace(index, recall=mean, note=f"{kind} ({name} {value}): recall@{k} {mean:.3f} on {len(queries)} queries")
    return replace(
        exact, note=f"exact search of {len(exact):,} items: {kind} ({name} {values[-1]}) reached recall@{k} {best:.3f} of {target:g}"
    )


def _columns(item: np.ndarray, hide: Pairs) -> Pairs:
    """Rows and items -> rows and columns of the known items, each pair once."""
    row, code = (np.asarray(values, np.int64) for values in hide)
    place, known = places(item, code)
    pair = np.unique(row[known] << 31 | place[known])
    return pair >> 31, pair & (2**31 - 1)


def _of_rows(hide: Pairs | None, rows: np.ndarray) -> Pairs | None:
    """The pairs of some rows, which are counted anew."""
    if hide is None:
        return None
    place = np.searchsorted(rows, hide[0])
    own = rows.take(place, mode="clip") == hide[0]
    return place[own], hide[1][own]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fingerprint(files: Mapping[str, str]) -> str:
    """One hash of all files'."""
    return hashlib.sha256("".join(files[name] for name in sorted(files)).encode()).hexdigest()
