"""The index against brute force, its measured recall, and its folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.errors import ConfigError, DataError, SourceError, StorageError
from isthmus.index import Index
from isthmus.layers import topk
from isthmus.layers.topk import first, scan

KINDS = ("exact", "ivf", "hnsw")


def vectors(n: int, dim: int = 16, seed: int = 0, clusters: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(n, dim))
    if clusters:
        centres = np.random.default_rng(99).normal(size=(clusters, dim)) * 3
        noise = centres[rng.integers(0, clusters, n)] + 0.5 * noise
    return torch.tensor(noise, dtype=torch.float32)


def brute(x: torch.Tensor, q: torch.Tensor, k: int, hidden: list[set[int]] | None = None) -> list[list[int]]:
    """Columns by falling score; equal ones by their place."""
    out = []
    for row, score in enumerate((q @ x.T).numpy()):
        order = [i for i in np.argsort(-score, kind="stable").tolist() if not hidden or i not in hidden[row]]
        out.append(order[:k])
    return out


# ---------------------------------------------------------------- blocks


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(0, 7),
    st.integers(0, 40),
    st.integers(1, 9),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 50),
)
def test_blocks_of_any_size_keep_the_same_first_k(seed: int, rows: int, n: int, k: int, down: int, across: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    table = rng.integers(0, levels, (rows, n)).astype(np.float32)
    hide = rng.random((rows, n)) < 0.3
    before, topk.ROWS, topk.COLUMNS = (topk.ROWS, topk.COLUMNS), down, across
    try:
        block = lambda columns: lambda some: torch.tensor(table[some, columns])  # noqa: E731
        score, column = scan(rows, n, k, block, hide.nonzero(), torch.device("cpu"))
    finally:
        topk.ROWS, topk.COLUMNS = before
    for r in range(rows):
        order = sorted((i for i in range(n) if not hide[r, i]), key=lambda i: (-table[r, i], i))[:k]
        assert column[r].tolist() == order + [-1] * (k - len(order))
        assert score[r].tolist() == [table[r, i] for i in order] + [-np.inf] * (k - len(order))


def test_scores_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(DataError, match="not numbers"):
        first(torch.tensor([[0.0, float("nan"), 1.0]]), 2)


# ---------------------------------------------------------------- search


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_found_with_items_left_out_equals_brute_force(kind: str) -> None:
    """On vectors that suit the kind; each row hides another number of its best items, some of them all."""
    clusters = 0 if kind == "hnsw" else 12
    x, q = vectors(3000, clusters=clusters, seed=1), vectors(40, clusters=clusters, seed=2)
    item = np.arange(3000) * 3 + 7
    best = brute(x, q, 3000)
    count = np.random.default_rng(0).integers(0, 60, 40)
    count[:4] = 0, 1500, 2999, 3000
    hidden = [set(row[:n]) for row, n in zip(best, count, strict=True)]
    row = np.concatenate([np.repeat(np.arange(40), count), [0, 1]])
    code = np.concatenate([*(item[row[:n]] for row, n in zip(best, count, strict=True)), [5, 10**6]]).astype(np.int64)  # two unknown items
    index = Index.build(x, kind, item=item, queries=vectors(200, clusters=clusters, seed=3), k=80, target_recall=0.97)  # type: ignore[arg-type]
    assert index.kind == kind, index.note
    found, score = index.search(q, 20, (row, code))
    expected = brute(x, q, 20, hidden)
    right = 0
    for r in range(40):
        mine = found[r][found[r] > 0]
        assert not set(mine) & set(item[list(hidden[r])])
        assert len(mine) == len(expected[r]) == np.isfinite(score[r]).sum()
        assert (np.diff(score[r][: len(mine)]) <= 0).all()
        assert score[r][: len(mine)] == pytest.approx((x[(mine - 7) // 3] @ q[r]).numpy(), rel=1e-4, abs=1e-4)
        right += len(set(mine) & set(item[expected[r]]))
    total = sum(map(len, expected))
    assert right == total if kind == "exact" else right >= 0.95 * total
    assert found[2, 1] == found[3, 0] == 0  # all but one, and all, are hidden
    assert found[2, 0] > 0


def test_rows_for_which_too_little_is_found_are_searched_exactly() -> None:
    """One inverted list of a few items is looked at; all that it holds is hidden."""
    x, q = vectors(2000, clusters=40, seed=1), vectors(30, clusters=40, seed=2)
    index = Index.build(x, "ivf", queries=vectors(200, clusters=40, seed=3), k=5, target_recall=0.5)
    assert index.parameters["probes"] <= 2
    near = np.array(brute(x, q, 200))
    found, _ = index.search(q, 5, (np.repeat(np.arange(30), 200), near.ravel()))
    assert (found > 0).all()
    assert not (found[:, :, None] == near[:, None, :]).any()


def test_measured_recall_is_the_true_one_and_settings_rise_until_it_is_enough() -> None:
    x, q = vectors(4000, dim=32), vectors(300, dim=32, seed=5)
    truth = brute(x, q, 10)
    found = {}
    for target in (0.3, 0.6, 0.9):
        index = Index.build(x, "hnsw", queries=q, k=10, target_recall=target)
        mine, _ = index.search(q, 10)
        true = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(mine, truth, strict=True)])
        assert index.recall == pytest.approx(true, abs=1e-6)
        assert index.recall >= target
        assert f"recall@10 {index.recall:.3f} on 300 queries" in index.note
        found[target] = index.parameters["search"]
    probes = [Index.build(x, "ivf", queries=q, k=10, target_recall=t).parameters.get("probes", 10**9) for t in (0.1, 0.3, 0.9)]
    assert probes == sorted(probes)
    assert probes[0] < probes[1]


def test_what_does_not_reach_its_target_becomes_exact_and_says_so() -> None:
    x, q = vectors(4000, dim=48), vectors(100, dim=48, seed=5)
    index = Index.build(x, "ivf", queries=q, k=100, target_recall=0.999)
    assert (index.kind, index.recall, index.searcher) == ("exact", 1.0, None)
    assert "exact search of 4,000 items: ivf (probes 16) reached recall@100 0." in index.note
    assert index.search(q, 7)[0].tolist() == brute(x, q, 7)


def test_hidden_items_count_in_the_measured_recall() -> None:
    x, q = vectors(3000), vectors(50, seed=5)
    hide = np.repeat(np.arange(50), 100), np.array(brute(x, q, 100)).ravel()
    index = Index.build(x, "hnsw", queries=q, hide=hide, k=10, target_recall=0.5)
    truth = [row[100:] for row in brute(x, q, 110)]
    mine, _ = index.search(q, 10, hide)
    assert index.recall == pytest.approx(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(mine, truth, strict=True)]), abs=1e-6)


def test_items_with_one_vector_are_all_found() -> None:
    """Equal scores count as found whichever items bring them: new items share one embedding."""
    x = vectors(500, seed=1)
    x[50:] = x[50]
    index = Index.build(x, "hnsw", queries=vectors(20, seed=2), k=60, target_recall=0.9)
    assert index.recall >= 0.9


def test_auto_is_exact_for_few_items_and_measured_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    x, q = vectors(2000, clusters=20), vectors(100, clusters=20, seed=5)
    assert Index.build(x, queries=q, k=10).kind == "exact"
    monkeypatch.setattr("isthmus.index.EXACT_UP_TO", 1000)
    assert Index.build(x, queries=q, k=10).kind == "ivf"
    assert Index.build(x, k=10).kind == "exact"  # nothing to measure it on
    monkeypatch.setattr("isthmus.layers.neighbours.installed", lambda: False)
    assert Index.build(x, queries=q, k=10).kind == "exact"


def test_without_faiss_exact_works_and_the_others_say_how_to_install_it() -> None:
    code = """
import sys
sys.modules["faiss"] = None
import torch
from isthmus.errors import ConfigError
from isthmus.index import Index
x = torch.eye(5)
assert Index.build(x, "auto", queries=x, k=1).search(x, 1)[0].ravel().tolist() == [0, 1, 2, 3, 4]
try:
    Index.build(x, "ivf", queries=x, k=1)
except ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert "pip install 'isthmus[index]'" in done.stdout


def test_empty_catalogues_and_no_queries() -> None:
    for kind in ("auto", *KINDS):
        index = Index.build(vectors(0), kind, queries=vectors(3), k=4)  # type: ignore[arg-type]
        item, score = index.search(vectors(3), 4)
        assert item.tolist() == [[0] * 4] * 3
        assert (score == -np.inf).all()
    for kind in KINDS:
        index = Index.build(vectors(300, clusters=3), kind, queries=vectors(9, clusters=3), k=4, target_recall=0.2)  # type: ignore[arg-type]
        assert index.search(vectors(0), 4)[0].shape == (0, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "hsnw"}, "did you mean 'hnsw'"),
        ({"kind": "ivf"}, "without queries"),
        ({"kind": "exact", "k": 0}, "k = 0"),
        ({"kind": "exact", "target_recall": 1.1}, "target_recall = 1.1"),
    ],
)
def test_wrong_use(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Index.build(vectors(10), **options)


def test_wrong_data_and_questions() -> None:
    x = vectors(300, clusters=3)
    with pytest.raises(DataError, match="299 items for 300"):
        Index.build(x, item=np.arange(299))
    with pytest.raises(DataError, match="ascending"):
        Index.build(x, item=np.arange(300)[::-1])
    with pytest.raises(DataError, match="not finite"):
        Index.build(torch.full((3, 2), float("nan")))
    index = Index.build(x, "hnsw", queries=x[:50], k=10, target_recall=0.5)
    with pytest.raises(ConfigError, match=r"k = 11 .*\n.*1 to 10, where its recall was measured"):
        index.search(x, 11)
    with pytest.raises(ConfigError, match=r"\(Q, 16\)"):
        index.search(x[:, :5], 3)


# ---------------------------------------------------------------- on disk


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_index_answers_alike(kind: str, tmp_path: Path) -> None:
    x, q = vectors(1500, clusters=10, seed=1), vectors(50, clusters=10, seed=2)
    index = Index.build(x, kind, item=np.arange(1500) * 2 + 2, queries=q, k=10, about={"domain": "s1"})  # type: ignore[arg-type]
    assert index.kind == kind
    index.save(tmp_path / "index")
    loaded = Index.load(tmp_path / "index")
    for name in ("kind", "parameters", "recall", "k", "note", "about"):
        assert getattr(loaded, name) == getattr(index, name), name
    for mine, theirs in zip(index.search(q, 10), loaded.search(q, 10), strict=True):
        assert mine.tolist() == theirs.tolist()
    manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
    assert (manifest["items"], manifest["dim"], manifest["kind"]) == (1500, 16, kind)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index"]


def test_a_folder_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    index = Index.build(vectors(10))
    index.save(tmp_path / "index")
    with pytest.raises(StorageError, match="exists already"):
        index.save(tmp_path / "index")
    Index.build(vectors(20)).save(tmp_path / "index", overwrite=True)
    assert len(Index.load(tmp_path / "index")) == 20


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    with pytest.raises(SourceError, match="missing"):
        Index.load(folder)
    x = vectors(800, clusters=5)
    index = Index.build(x, "ivf", queries=x[:50], k=5, target_recall=0.3)
    for name in ("items.arrow", "vectors.safetensors", "index.faiss"):
        index.save(folder, overwrite=True)
        data = bytearray((folder / name).read_bytes())
        data[-9] ^= 1
        (folder / name).write_bytes(data)
        with pytest.raises(SourceError, match=f"{name} is missing or changed"):
            Index.load(folder)
        (folder / name).unlink()
        with pytest.raises(SourceError, match=f"{name} is missing or changed"):
            Index.load(folder)
    for change in ({"format": 9}, {"items": 3}, {"dim": 3}, {"fingerprint": "x"}, {"kind": "auto"}, {"files": None}, {"files": {}}):
        index.save(folder, overwrite=True)
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | change))
        with pytest.raises(SourceError):
            Index.load(folder)


@given(
    st.lists(st.lists(st.sampled_from([0.0, 1.0, 2.5, -3.0, float("-inf")]), min_size=40, max_size=40), min_size=1, max_size=3),
    st.integers(1, 6),
)
def test_wide_rows_have_the_first_k_of_narrow_ones(rows: list[list[float]], k: int) -> None:
    """By way of a bound, or by sorting: the same, ties and columns that are out included."""
    scores = torch.tensor(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isthmus.layers.topk.WIDE", 1)
        patch.setattr("isthmus.layers.topk.EVERY", 3)
        value, column = first(scores, k)
    for row, found, where in zip(rows, value.tolist(), column.tolist(), strict=True):
        expected = sorted(range(40), key=lambda n: (-row[n], n))[:k]
        assert where == expected
        assert found == [row[n] for n in expected]


def test_a_wide_row_with_something_that_is_no_number_is_refused() -> None:
    scores = torch.rand(3, 1 << 14)
    scores[1, 77] = torch.nan
    with pytest.raises(DataError, match="not numbers"):
        first(scores, 5)
