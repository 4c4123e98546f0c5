"""Training at every place of a sequence: each event is asked for once, from what was before it and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from isthmus.batch import Batch, Needs
from isthmus.data import split
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import read_events
from isthmus.data.order import Plan
from isthmus.data.sequences import GROUP, Sequences
from isthmus.data.windows import WindowBatches
from isthmus.errors import ConfigError, DataError, SplitError
from isthmus.fit import How, fit
from isthmus.run import build
from isthmus.task import get_task

WIDE = 200  # longer than any sequence here


def make(path: Path, seed: int, *, n: int = 300, users: int = 12, moments: int = 40, timed: bool = True, label: bool = False) -> Dataset:
    """Events of few users at few moments, so that many share one; in three domains of very different size."""
    rng = np.random.default_rng(seed)
    frame = pl.DataFrame(
        {
            "user": [f"u{i}" for i in rng.integers(0, users, n)],
            "item": [f"i{i}" for i in rng.integers(0, 25, n)],
            "domain": rng.choice(["a", "b", "c"], n, p=[0.7, 0.25, 0.05]),
            "time": rng.integers(0, moments, n),
            "label": rng.integers(0, 2, n),
        }
    )
    columns = {"time": "time"} if timed else {}
    events = read_events(frame, user="user", item="item", domain="domain", label="label" if label else None, **columns)
    return encode(events, split.global_time(events) if timed else split.random(events), path)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make(tmp_path_factory.mktemp("sequences") / "data", 0)


def asked(data: Dataset, plan: Plan, merged: bool = False, epoch: int = 0) -> list[tuple[int, int, list[int]]]:
    """Of an epoch, each target: its row, the domain of its window, and the rows known at its state, oldest first."""
    sequences, found = Sequences(data, plan, merged), []
    for step in range(sequences.steps):
        w = sequences.batch(epoch, step)
        width = w.event.shape[1]
        assert (np.diff(w.domain) >= 0).all()
        assert w.offsets.tolist() == np.searchsorted(w.domain, np.arange(4)).tolist()
        for number, (slot, target) in enumerate(zip(w.slot, w.target, strict=True)):
            row, column = divmod(int(slot), width)
            known = w.event[row, : column + 1]
            domain = int(w.domain[row])
            assert w.target_offsets[domain] <= number < w.target_offsets[domain + 1]
            assert (known[known >= 0] == known[np.argmax(known >= 0) :][: (known >= 0).sum()]).all(), "no gap inside"
            found.append((int(target), domain, known[known >= 0].tolist()))
    return found


def before(data: Dataset, place: int, merged: bool, moment: int = 1) -> tuple[list[int], set[int]]:
    """By looking at every row: those of moments before a training row's, oldest first, and the others of its own."""
    rows = data.part("train")
    same = [p for p in range(len(rows)) if rows.user[p] == rows.user[place] and (merged or rows.domain[p] == rows.domain[place])]
    when = rows.row if rows.time is None else np.asarray(rows.time) // moment
    earlier = sorted((p for p in same if when[p] < when[place]), key=lambda p: (when[p], rows.row[p]))
    return earlier, {p for p in same if when[p] == when[place] and p != place}


@pytest.mark.parametrize("merged", [False, True])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 1000), size=st.integers(1, 400), moments=st.integers(25, 80), timed=st.booleans(), moment=st.sampled_from([1, 1, 7])
)
def test_every_event_is_asked_once_from_all_that_was_before_it(
    tmp_path_factory: pytest.TempPathFactory, merged: bool, seed: int, size: int, moments: int, timed: bool, moment: int
) -> None:
    try:
        data = make(tmp_path_factory.mktemp("some") / "data", seed, n=120, moments=moments, timed=timed)
    except SplitError:  # so few moments that a part is left without events
        assume(False)
        raise
    found = asked(data, Plan(batch_size=size, history_length=WIDE, moment=moment), merged)
    rows = data.part("train")
    assert sorted(t for t, _, _ in found) == list(range(len(rows)))
    known_at = {target: known for target, _, known in found}
    for target, domain, known in found:
        earlier, tied = before(data, target, merged, moment)
        assert domain == rows.domain[target]
        assert set(known[: len(earlier)]) == set(earlier)
        times = [] if rows.time is None else [int(rows.time[p]) // moment for p in known]
        assert times == sorted(times)
        assert set(known[len(earlier) :]) <= tied
        for other in tied:  # one of two of a moment is before the other
            assert (other in known) != (target in known_at[other])


@pytest.mark.parametrize("moment", [1, 5])
def test_events_of_a_moment_have_another_order_in_each_epoch(dataset: Dataset, moment: int) -> None:
    plan = Plan(batch_size=64, history_length=WIDE, moment=moment)
    orders = [{target: known for target, _, known in asked(dataset, plan, epoch=epoch)} for epoch in range(8)]
    pairs = [(a, b) for a in orders[0] for b in before(dataset, a, False, moment)[1] if a < b]
    first = np.array([[a in order[b] for a, b in pairs] for order in orders])
    assert len(pairs) > 20
    assert 0.3 < first.mean() < 0.7
    assert (first.any(0) & ~first.all(0)).mean() > 0.9


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_long_sequences_are_cut_and_lose_only_what_is_far_back(dataset: Dataset, length: int, merged: bool) -> None:
    found = asked(dataset, Plan(batch_size=64, history_length=length), merged)
    assert sorted(t for t, _, _ in found) == list(range(len(dataset.part("train"))))
    longest = 0
    for target, _, known in found:
        earlier, tied = before(dataset, target, merged)
        assert len(known) <= length
        assert set(known) <= set(earlier) | tied
        assert known or not earlier, "a state that knows nothing is for first events alone"
        longest = max(longest, len(known))
    assert longest == length


def test_a_single_domain_sees_nothing_of_the_others(dataset: Dataset) -> None:
    rows = dataset.part("train")
    found = asked(dataset, Plan(batch_size=64, history_length=WIDE, domains=(1,)), merged=True)
    assert {t for t, _, _ in found} == set(range(*rows.offsets[1:3]))
    assert all(rows.domain[p] == 1 for _, _, known in found for p in known)


def test_clicks_with_label_zero_are_neither_asked_for_nor_known(tmp_path: Path) -> None:
    data = make(tmp_path / "data", 3, label=True)
    label = data.part("train").label
    found = asked(data, Plan(batch_size=64, history_length=WIDE))
    assert sorted(t for t, _, _ in found) == np.flatnonzero(label == 1).tolist()
    assert all(label[p] == 1 for _, _, known in found for p in known)


def test_equal_shares_give_every_domain_as_many_windows(dataset: Dataset) -> None:
    counts = []
    for temperature in (1.0, 0.0):
        sequences = Sequences(dataset, Plan(batch_size=8, history_length=3, temperature=temperature))
        batches = [sequences.batch(0, step) for step in range(sequences.steps)]
        counts.append(np.bincount(np.concatenate([w.domain for w in batches]), minlength=3))
    assert counts[0].sum() == counts[1].sum()
    assert counts[0].min() < counts[0].max() / 3
    assert counts[1].max() - counts[1].min() <= 1


def test_batches_are_a_function_of_seed_epoch_and_step(dataset: Dataset) -> None:
    plan = Plan(batch_size=40, history_length=6)
    first, again = Sequences(dataset, plan), Sequences(dataset, plan)
    assert first.steps > 3
    there = [first.batch(1, step).target.tolist() for step in range(first.steps)]
    assert [again.batch(1, step).target.tolist() for step in reversed(range(first.steps))] == there[::-1]
    assert [first.batch(2, step).target.tolist() for step in range(first.steps)] != there
    other = Sequences(dataset, Plan(batch_size=40, history_length=6, seed=1))
    assert [other.batch(1, step).target.tolist() for step in range(first.steps)] != there


def test_batches_hold_about_as_many_slots_as_asked_and_little_padding(tmp_path: Path) -> None:
    data = make(tmp_path / "data", 5, n=6000, users=600, moments=4000)
    sequences = Sequences(data, Plan(batch_size=128, history_length=50))
    shapes = [sequences.batch(0, step).event.shape for step in range(sequences.steps)]
    sizes = [b * w for b, w in shapes]
    slots = int((sequences.window[:, 2] - sequences.window[:, 1]).sum())
    assert sequences.steps > 2 * GROUP
    assert 100 < np.mean(sizes) < 180
    assert max(sizes) < 3 * 128
    assert sum(sizes) < 1.25 * slots, "padded slots beside real ones"


def test_the_batch_says_what_the_windows_say(dataset: Dataset) -> None:
    needs = Needs(history=True, history_time=True, merged_history=True)
    plan = Plan(batch_size=64, history_length=5, negatives=3, sampler="uniform")
    feed, rows = WindowBatches(dataset, needs, plan), dataset.part("train")
    batch, windows = feed.batch(0, 0), feed.sequences.batch(0, 0)
    assert batch.target is not None
    assert batch.item.shape == (len(batch), 0)
    there = windows.event >= 0
    assert torch.equal(batch.merged_history, torch.from_numpy(np.where(there, rows.item[windows.event], 0)).long())
    assert torch.equal(batch.merged_domain, torch.from_numpy(np.where(there, rows.domain[windows.event], -1)).long())
    assert batch.target.item.tolist() == rows.item[windows.target].tolist()
    assert batch.target.domain.tolist() == rows.domain[windows.target].tolist()
    assert batch.target.negative.shape == (len(windows.target), 3)
    known = dataset.known(rows.user[windows.target], rows.domain[windows.target], batch.target.negative.numpy())
    assert not known.any()
    moved = batch.to("cpu")
    assert moved.target.offsets == batch.target.offsets


def test_drawn_candidates_are_counted_as_often_as_they_are_expected(dataset: Dataset) -> None:
    feed = WindowBatches(dataset, Needs(history=True), Plan(batch_size=500, history_length=5, negatives=4000, sampler="drawn", alpha=0.5))
    pool = feed.batch(0, 0).pool
    assert pool is not None
    assert pool.own is None
    part = slice(pool.offsets[0], pool.offsets[1])
    count = torch.bincount(pool.item[part], minlength=dataset.schema.item.size)
    expected = pool.item.new_zeros(dataset.schema.item.size).double()
    expected[pool.item[part]] = pool.log_q[part].double().exp()
    popularity = np.maximum(dataset.popularity(0)[dataset.catalogue(0)], 1) ** 0.5
    true = torch.from_numpy(4000 * popularity / popularity.sum())
    torch.testing.assert_close(expected[dataset.catalogue(0)], true, rtol=1e-4, atol=1e-4)
    assert ((count.double() - expected).abs() <= 6 * expected.sqrt()).all()


def test_no_events_and_no_negatives_are_refused(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match="without negatives"):
        WindowBatches(dataset, Needs(history=True), Plan(sampler="drawn", negatives=0))
    with pytest.raises(ConfigError, match="domain ind"):
        Sequences(dataset, Plan(domains=(7,)))


SETTINGS: list[dict[str, Any]] = [{}, {"objective": "bce", "negatives": 4}, {"sampler": "popularity"}, {"sampler": "in_batch"}]


@pytest.mark.filterwarnings("ignore:stage 'fit' ended after 2 epochs")  # it learns next to nothing in so few
@pytest.mark.parametrize("own", SETTINGS)
def test_training_stopped_in_mid_epoch_and_resumed_gives_the_same_bits(
    dataset: Dataset, tmp_path: Path, own: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    how = How(epochs=2, batch_size=24, history_length=6, device="cpu", progress=False, patience=None, keep="last", **own)
    task, made = get_task("next_item"), WindowBatches.batch

    def run(folder: str, resume: bool = False) -> dict[str, torch.Tensor]:
        model = build("sasrec", dataset.schema, {"dim": 8}, seed=0)
        return fit(model, dataset, task, how, tmp_path / folder, resume=resume).model.state_dict()

    def stopped(self: WindowBatches, epoch: int, step: int) -> Batch:
        if (epoch, step) == (1, 2):
            raise KeyboardInterrupt
        return made(self, epoch, step)

    whole = run("whole")
    monkeypatch.setattr(WindowBatches, "batch", stopped)
    with pytest.raises(KeyboardInterrupt):
        run("halves")
    monkeypatch.setattr(WindowBatches, "batch", made)
    other = run("halves", resume=True)
    assert all(torch.equal(value, other[name]) for name, value in whole.items())


def test_states_at_all_places_are_what_each_event_s_own_history_gives(tmp_path: Path) -> None:
    """Asked at every place of a window, or once for each event with the history that scoring would cut: the same vectors."""
    dataset = make(tmp_path / "data", 1, moments=1_000_000)  # no two at one moment
    rows = dataset.part("train")
    asked: list[tuple[str, dict[str, Any]]] = [
        ("sasrec", {}),
        ("sasrec", {"merged": True}),
        ("gru4rec", {}),
        ("caser", {}),
        ("man_dot", {}),
    ]
    asked += [("encoded", {"encoder": "sli_rec"}), ("encoded", {"encoder": "surge", "merged": True})]
    for name, args in asked:
        model, merged = build(name, dataset.schema, args, seed=0).eval(), "merged" in args
        feed = WindowBatches(dataset, model.needs, Plan(batch_size=100, history_length=WIDE, sampler="full"))
        batch = feed.batch(0, 0)
        windows, target = feed.sequences.batch(0, 0), batch.target
        with torch.no_grad():
            found = model.states(batch).flatten(0, 1)[target.slot]
            known = dataset.history.cut(
                rows.user[windows.target], rows.time[windows.target], None if merged else rows.domain[windows.target], WIDE
            )
            alone = Batch(torch.from_numpy(rows.user[windows.target]).long(), target.item[:, None], target.domain, target.offsets)
            past = torch.from_numpy(known["item"]).long()
            if merged:
                alone.merged_history, alone.merged_domain = past, torch.from_numpy(known["domain"]).long()
            else:
                alone.history, alone.history_time = past, torch.from_numpy(known["time"])
            expected = model.user_vector(alone)
        # Histories hold the later parts too, but nothing from a row's own moment on: for training rows that is training alone.
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=lambda m, n=name, k=args: f"{n} {k}: {m}")


def test_a_domain_without_rows_keeps_its_weights(tmp_path: Path) -> None:
    """Independent updating: a batch of one domain trains; what the others have for themselves stays, bit for bit."""
    data = make(tmp_path / "data", 2)
    model = build("man_dot", data.schema, {"dim": 8}, seed=0)
    how = How(epochs=2, batch_size=32, device="cpu", progress=False, domains=(0,), keep="last", patience=None, weight_decay=0.1)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    after = fit(model, data, get_task("next_item"), how).model.state_dict()
    held = len(start["vectors.here.table.weight"]) // 3
    for name, value in after.items():
        others = name.startswith(("local.copies.1", "local.copies.2", "predict.copies.1", "predict.copies.2"))
        assert not others or torch.equal(value, start[name]), name
    for table in ("vectors.here.table.weight", "bias.table.weight"):
        own = slice(1, 1 + held)
        assert not torch.equal(after[table][own], start[table][own])
        assert torch.equal(after[table][1 + held :], start[table][1 + held :])
    with pytest.raises(DataError, match="no training event"):
        Sequences(data, Plan(domains=()))
