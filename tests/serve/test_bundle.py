"""What a bundle is made of: ids, profiles, arrays, catalogues, the card; and what `export` refuses."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from served import run_of, small_data

import isthmus
from command import isthmus as command
from isthmus.batch import Needs
from isthmus.data.batches import query_batch
from isthmus.errors import ConfigError, SourceError, StorageError
from isthmus.export.bundle import export
from isthmus.export.card import Licences
from isthmus.export.given import data_of, titles_of
from isthmus.schema import FIRST, UNKNOWN
from isthmus.serve.bundle import Bundle, fingerprint
from isthmus.serve.feeds import Reads, Row, feeds
from isthmus.serve.ids import Ids
from isthmus.serve.profiles import Past


@given(st.lists(st.text(max_size=5), unique=True, max_size=40), st.lists(st.text(max_size=5), max_size=40))
def test_codes_of_texts_are_their_places(ids: list[str], asked: list[str]) -> None:
    known = Ids(pl.Series("id", ids, dtype=pl.String))
    assert known.codes(asked).tolist() == [ids.index(one) + FIRST if one in ids else UNKNOWN for one in asked]
    assert known.names(np.arange(len(ids)) + FIRST) == ids


@given(st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=40), st.lists(st.integers(-(2**70), 2**70), max_size=40))
def test_codes_of_whole_numbers_and_of_their_texts(ids: list[int], asked: list[int]) -> None:
    known = Ids(pl.Series("id", ids, dtype=pl.Int64))
    expected = [ids.index(one) + FIRST if one in ids else UNKNOWN for one in asked]
    assert known.codes(asked).tolist() == expected
    assert known.codes([str(one) for one in asked]).tolist() == expected
    assert known.codes(["", "1.0", "one", "0x1"]).tolist() == [UNKNOWN] * 4


def test_ids_of_equal_hashes_are_told_apart() -> None:
    known = Ids(pl.Series("id", ["a", "b", "c"]))
    object.__setattr__(known, "_hash", np.full(3, pl.Series(["b"]).hash()[0], np.uint64))  # as if all had b's
    assert known.codes(["b", "x"]).tolist() == [known._place.tolist().index(1) * 0 + 3, UNKNOWN]


EVENTS = st.lists(st.tuples(st.integers(2, 5), st.integers(0, 1), st.integers(0, 6)), max_size=12)


def past(events: list[tuple[int, int, int]], *, timed: bool = True) -> Past:
    events = sorted(events, key=lambda e: e[2])
    item, domain, time = (np.array([e[n] for e in events], np.int64) for n in range(3))
    return Past(item, domain, time if timed else None)


@given(EVENTS, EVENTS)
def test_joined_events_are_in_order_and_each_counts_once(stored: list, live: list) -> None:
    both = past(stored).joined(past(live))
    found = list(zip(both.item.tolist(), both.domain.tolist(), both.time.tolist(), strict=True))
    if stored and live:
        assert len(found) == len(set(found))
    assert set(found) == set(stored) | set(live)
    assert both.time.tolist() == sorted(both.time.tolist())


@given(EVENTS, EVENTS)
def test_without_times_a_history_is_a_set_whose_last_events_stay(stored: list, live: list) -> None:
    both = past(stored, timed=False).joined(past(live, timed=False))
    pairs = list(zip(both.item.tolist(), both.domain.tolist(), strict=True))
    if stored and live:
        every = [e[:2] for e in [*sorted(stored, key=lambda e: e[2]), *sorted(live, key=lambda e: e[2])]]
        assert pairs == [e for n, e in enumerate(every) if e not in every[n + 1 :]]


NEEDS = [
    Needs(history=True, behaviour=True, history_time=True),
    Needs(cross_history=True, behaviour=True, history_time=True, context=True),
    Needs(merged_history=True),
    Needs(history=True, cross_history=True, whole_history=True),
]


@pytest.mark.parametrize("needs", NEEDS, ids=lambda needs: "+".join(name for name, on in asdict(needs).items() if on))
@pytest.mark.parametrize("cross", [True, False])
def test_arrays_of_stored_users_are_those_of_a_batch(needs: Needs, cross: bool, alone) -> None:
    dataset, bundle = alone.dataset, Bundle.load(alone.path)
    users = np.arange(1, dataset.schema.user.size)
    for d in range(3):
        time = np.full(len(users), 1_050_000)
        context = {"device": np.full(len(users), 2), "hour": np.zeros(len(users), np.float32)}
        batch = query_batch(dataset, needs, users, np.full(len(users), d), time, np.zeros((len(users), 0)), 6, cross=cross, context=context)
        rows = [Row(u, bundle.profiles.of(u).before(1_050_000), 1_050_000, {"device": 2, "hour": 0.0}) for u in users.tolist()]
        found = feeds(Reads(needs, 6, cross, user=True), dataset.schema, rows, d)
        names = ["user", "history", "history_time", "history_behaviour", "cross_history", "cross_domain", "cross_time"]
        names += ["cross_behaviour", "merged_history", "merged_domain", "time"]
        for name in names:
            expected = getattr(batch, name)
            assert (expected is None) == (name not in found), name
            if expected is not None:
                width = min(found[name].shape[-1], expected.shape[-1])  # histories read whole are as wide as the widest
                same = (slice(None), slice(-width, None)) if expected.ndim == 2 else slice(None)
                np.testing.assert_array_equal(found[name][same], expected.numpy()[same], err_msg=name)
                assert found[name].dtype == expected.numpy().dtype
        assert ("context.device" in found) == needs.context


def test_a_bundle_tells_what_it_was_made_from_and_how_good_it_is(chained) -> None:
    card = json.loads((chained.path / "card.json").read_text())
    assert card["domains"] == ["large", "medium", "small"]
    assert card["data"]["rows"]["train"] == dict(zip(card["domains"], chained.dataset.manifest["rows"]["train"], strict=True))
    assert [one["model"] for one in card["models"]] == ["sasrec", "mmoe"]
    values = card["models"][1]["test"]["values"]
    assert {"ndcg@10", "mrr"} <= {one["metric"] for one in values}
    assert {one["domain"] for one in values} >= {"large", "medium", "small"}
    assert card["licences"] == {"model": "not stated", "data": "not stated"}
    words = (chained.path / "README.md").read_text()
    assert "# chained" in words
    assert "| large | ndcg@10 |" in words


def test_the_same_runs_make_the_same_bundle_but_for_its_date(alone, tmp_path: Path) -> None:
    again = export(alone.runs, alone.dataset, tmp_path / "again", name="alone", measured=False)
    first, second = (json.loads((path / "manifest.json").read_text()) for path in (alone.path, again))
    changed = {name for name in first["files"] if first["files"][name] != second["files"].get(name)}
    assert changed == set()
    assert first["fingerprint"] == second["fingerprint"] == fingerprint(first["files"])


def test_weights_are_kept_once_whatever_the_number_of_domains(alone) -> None:
    weights = (alone.path / "0" / "model.safetensors").stat().st_size
    graphs = [(alone.path / "0" / f"{d}.onnx").stat().st_size for d in range(3)]
    assert sum(graphs) < weights


def test_load_answers_in_python(alone) -> None:
    engine = isthmus.load(alone.path)
    answer = engine.recommend([isthmus.Ask("u 3/'ü", k=4)], "medium")[0]
    assert len(answer.items) == 4


def test_what_cannot_be_exported_is_told(alone, dataset, tmp_path: Path) -> None:
    run = alone.runs[0]
    ranker = run_of("mmoe", dataset)
    with pytest.raises(ConfigError, match="give the retriever first"):
        export([ranker, run], dataset, tmp_path / "b")
    with pytest.raises(ConfigError, match="0 runs"):
        export([], dataset, tmp_path / "b")
    with pytest.raises(ConfigError, match="the name"):
        export([run], dataset, tmp_path / "b", name="../b")
    with pytest.raises(StorageError, match="exists already"):
        export([run], dataset, alone.path)
    assert not (tmp_path / "b").exists()


def test_a_run_of_other_data_is_refused(alone, tmp_path: Path) -> None:
    other = small_data(tmp_path / "data", items=20)
    with pytest.raises(ConfigError, match="the data that the run was trained on"):
        export(alone.runs, other, tmp_path / "b")


def test_titles_come_from_a_file_with_an_id_and_a_title(tmp_path: Path) -> None:
    frame = pl.DataFrame({"item": [1, 2], "title": ["One", None]})
    frame.write_parquet(tmp_path / "items.parquet")
    frame.write_csv(tmp_path / "items.csv")
    for name in ("items.parquet", "items.csv"):
        assert titles_of(f"{tmp_path / name}:item:title") == {"1": "One"}
    with pytest.raises(ConfigError, match="FILE:ITEM:TITLE"):
        titles_of(str(tmp_path / "items.csv"))
    with pytest.raises(ConfigError, match="did you mean 'title'"):
        titles_of(f"{tmp_path / 'items.csv'}:item:tittle")
    with pytest.raises(SourceError, match="is missing"):
        titles_of(f"{tmp_path / 'none.csv'}:item:title")


def test_the_command_line_exports_from_a_run_alone(dataset, tmp_path: Path) -> None:
    from isthmus.fit import fit
    from isthmus.how import How
    from isthmus.run import build
    from isthmus.task import get_task

    how = How(epochs=1, progress=False, device="cpu", history_length=8)
    fit(build("popularity", dataset.schema, {}), dataset, get_task("retrieval"), how, tmp_path / "run")
    assert data_of(tmp_path / "run") == dataset.path.absolute()
    words = ("export", tmp_path / "run", "-o", tmp_path / "bundle", "--no-measure")
    assert "isthmus serve" in command(*words, "--data-licence", "CC0")
    assert json.loads((tmp_path / "bundle" / "card.json").read_text())["licences"]["data"] == "CC0"
    assert "exists already" in command(*words, ok=1)
    assert Licences().data == "not stated"
