"""``Judged``: what a comparison needs of a table of scores once it is judged; its lines can go."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

import isthmus.metrics as metric_files
from isthmus.errors import ConfigError
from isthmus.estimates import ALL, Estimate, resample, statistics
from isthmus.measure import COLUMNS, check, tabled
from isthmus.scores import KEY, Scores
from isthmus.slices import Scored, Slice, by_domain, compact, cut
from isthmus.storage import whole_file

HASHES = 1 << 28  # a sum of fewer than 2**25 of them is exact in float64


@dataclass(frozen=True)
class Asked:
    """How a table is judged.

    Attributes:
        metrics: of the table of ``measure``; none: no such table.
        intervals: resamples of users behind its intervals; 0: none.
        compared: metrics whose resampled values are kept, for the ledger or beside a paper.
        resamples: of these; 0: values only.
        seed: of the resamples.
    """

    metrics: tuple[str, ...] = ()
    intervals: int = 0
    compared: tuple[str, ...] = ()
    resamples: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Rows:
    """What was judged, to be held beside another table's.

    Attributes:
        digest: a hash of each group's users, items and labels (of rankings kept in part, its positives), whatever their order.
        sizes: domain, users and rows.
    """

    digest: str
    sizes: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Judged:
    """A judged table; as large as the number of resamples, whatever the number of lines.

    Attributes:
        asked: how it was judged.
        rows: what was judged.
        users: by domain, "all" included.
        estimates: by metric and domain, "all" included, of ``asked.compared``.
        measures: as ``measure`` returns it, for ``asked.metrics``.
    """

    asked: Asked
    rows: Rows
    users: dict[str, int]
    estimates: dict[str, dict[str, Estimate]]
    measures: pl.DataFrame


def judge(scores: Scored, asked: Asked) -> Judged:
    """Judges a table once for all that is asked.

    Raises:
        ConfigError, DataError: see ``measure``.
    """
    measured, compared = ([metric_files.get(name) for name in names] for names in (asked.metrics, asked.compared))
    judges = list({j.name: j for j in (*measured, *compared)}.values())
    check(scores, judges)
    slices, users = cut(scores, states=bool(asked.metrics))
    found = statistics(slices, judges)
    domains, at = [s for s in slices if s.state == ALL], {j.name: n for n, j in enumerate(judges)}
    mine = [[own[at[j.name]] for j in compared] for s, own in zip(slices, found, strict=True) if s.state == ALL]
    estimates: dict[str, dict[str, Estimate]] = {}
    for (name, domain, _), value in resample(domains, compared, mine, users, asked.resamples, asked.seed).items():
        estimates.setdefault(name, {})[domain] = value
    own = [[each[at[j.name]] for j in measured] for each in found]
    table = tabled(scores, slices, resample(slices, measured, own, users, asked.intervals, asked.seed), asked.intervals)
    count = {ALL: users} | {s.domain: len(s.users) for s in domains}
    return Judged(asked, _rows(scores, domains), count, estimates, table)


def judged(scores: Scored | Judged, metric: str, resamples: int, seed: int) -> Judged:
    """The table judged for a comparison by one metric, or, when it is judged already, the same.

    Raises:
        ConfigError: it was judged by other metrics or other resamples; see also ``judge``.
    """
    asked = Asked(compared=(metric,), resamples=resamples, seed=seed)
    if not isinstance(scores, Judged):
        return judge(scores, asked)
    if metric not in scores.estimates or (scores.asked.resamples, scores.asked.seed) != (resamples, seed):
        raise ConfigError(f"a table judged by {scores.asked}", f"by {asked}", "judge its scores again")
    return scores


def judged_file(path: Path, asked: Asked) -> Judged:
    """Judges a file of scores, unless what lies beside it (``<name>.judged.parquet``) answers the same for the same bytes.

    Raises:
        SourceError: the file of scores is missing or damaged.
        ConfigError, DataError: see ``measure``.
    """
    beside = path.with_suffix(".judged.parquet")
    if path.exists():
        key = _key(path, asked)
        found = _read(beside, key, asked)
        if found is None:
            found = judge(Scores.load(path), asked)
            _write(found, beside, key)
        return found
    return judge(Scores.load(path), asked)  # says what is missing


def _rows(scores: Scored, domains: Sequence[Slice]) -> Rows:
    frame = scores.frame
    content = (frame.select(pl.struct("user", "item", pl.col("label").cast(pl.Float64)).hash(0)).to_series() % HASHES).to_numpy()
    digests, sizes = {}, []
    for (name, rows), s in zip(by_domain(frame), domains, strict=True):
        table, weight, ids = s.whole, content[rows], frame["group"][rows]
        first = np.zeros(table.groups, np.int64)
        first[table.group] = np.arange(len(table))
        counted = table.label > 0 if scores.kind == "full" else np.ones(len(table), bool)
        group = table.group[counted]
        columns = {
            "group": ids.gather(first),
            "rows": np.bincount(group, minlength=table.groups),
            "content": np.bincount(group, weight[counted], table.groups),
        }
        held = pl.DataFrame(columns).filter(pl.col("rows") > 0)
        digests[name] = hashlib.sha256(held.hash_rows(seed=0).to_numpy().tobytes()).hexdigest()
        sizes.append((name, len(compact(table.user[counted], table.users)[0]), int(counted.sum())))
    return Rows(hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest(), tuple(sorted(sizes)))


def _key(path: Path, asked: Asked) -> str:
    """A hash of the scores, of how they are judged and of the code that judges them."""
    found = hashlib.sha256(json.dumps([asdict(asked), _code()]).encode())
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()


@functools.cache
def _code() -> list[str]:
    here = Path(__file__).parent
    files = [*sorted((here / "metrics").glob("*.py")), *(here / f"{name}.py" for name in ("slices", "estimates", "measure", "judged"))]
    return [np.__version__, pl.__version__, *(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)]


def _write(found: Judged, path: Path, key: str) -> None:
    lines = [(metric, domain, e) for metric, by_domain in found.estimates.items() for domain, e in by_domain.items()]
    columns = {
        "metric": pa.array([metric for metric, _, _ in lines], pa.string()),
        "domain": pa.array([domain for _, domain, _ in lines], pa.string()),
        "value": pa.array([e.value for _, _, e in lines], pa.float64()),
        "dof": pa.array([float(e.dof) for _, _, e in lines], pa.float64()),
        "note": pa.array([e.note for _, _, e in lines], pa.string()),
        "replicates": pa.array([e.replicates for _, _, e in lines], pa.list_(pa.float64())),
    }
    head = {"key": key, "rows": asdict(found.rows), "users": found.users, "measures": found.measures.rows()}
    table = pa.table(columns).replace_schema_metadata({KEY: json.dumps(head).encode()})
    with whole_file(path) as temporary:
        pq.write_table(table, temporary)


def _read(path: Path, key: str, asked: Asked) -> Judged | None:
    """What ``_write`` wrote under this key, or None."""
    try:
        file = pq.ParquetFile(path)
        head: dict[str, Any] = json.loads((file.schema_arrow.metadata or {}).get(KEY, b"{}"))
        if head.get("key") != key:
            return None
        table = file.read()
    except (pa.ArrowException, OSError, ValueError):
        return None
    estimates: dict[str, dict[str, Estimate]] = {}
    replicates = table["replicates"].combine_chunks()
    names, values = (table.select(some).to_pylist() for some in (["metric", "domain", "note"], ["value", "dof"]))
    for n, (name, number) in enumerate(zip(names, values, strict=True)):
        again = replicates[n].values.to_numpy(zero_copy_only=False)
        estimates.setdefault(name["metric"], {})[name["domain"]] = Estimate(number["value"], again, number["dof"], name["note"])
    rows = Rows(head["rows"]["digest"], tuple((d, u, r) for d, u, r in head["rows"]["sizes"]))
    measures = pl.DataFrame(head["measures"], schema=COLUMNS, orient="row")
    return Judged(asked, rows, head["users"], estimates, measures)
