"""Batches: pure functions of seed, epoch and step; every row once; rows by domain; nothing that was not asked for."""

from __future__ import annotations

import threading
from dataclasses import fields

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.batch import Batch, Needs, Pool, Targets
from isthmus.data import order, split
from isthmus.data.batches import Plan, ahead, batches, batches_with_rows, query_batch, steps
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import Events, read_events
from isthmus.data.order import dealt
from isthmus.data.split import Candidates
from isthmus.errors import ConfigError, DataError

EVERYTHING = Needs(history=True, cross_history=True, behaviour=True, history_time=True, context=True)
SIZES = {"large": 150, "mid": 60, "small": 7}


def log(timed=True, label="click", seed=0) -> Events:
    rng = np.random.default_rng(seed)
    total = sum(SIZES.values())
    frame = pl.DataFrame(
        {
            "u": rng.integers(0, 12, total),
            "i": rng.integers(0, 25, total),
            "d": np.repeat(list(SIZES), list(SIZES.values())),
            "t": rng.integers(0, 90, total),
            "y": rng.integers(0, 2, total) if label == "click" else rng.integers(1, 6, total),
            "b": rng.choice(["view", "buy"], total),
            "hour": rng.integers(0, 24, total),
            "price": rng.normal(size=total),
            "tags": [[f"t{k}" for k in range(n)] for n in rng.integers(0, 4, total)],
        }
    ).sample(fraction=1.0, shuffle=True, seed=seed)
    names = {"user": "u", "item": "i", "domain": "d", "time": "t" if timed else None, "label": None if label == "implicit" else "y"}
    return read_events(frame, **names, behaviour="b", context=["hour", "price", "tags"], domains=list(SIZES))


def parts_of(events: Events) -> np.ndarray:
    """Nine of ten rows of each domain train; of every domain but the small one the others are for validation or test."""
    part = np.where(np.arange(len(events)) % 20 == 3, 1, np.where(np.arange(len(events)) % 20 == 7, 2, 0))
    return np.where(events.domain == 2, 0, part)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    events = log()
    return encode(events, split.given(events, parts_of(events)), tmp_path_factory.mktemp("timed") / "d")


@pytest.fixture(scope="module")
def untimed(tmp_path_factory) -> Dataset:
    events = log(timed=False, label="implicit")
    return encode(events, split.given(events, parts_of(events)), tmp_path_factory.mktemp("untimed") / "d")


def same(one: Batch, other: Batch) -> bool:
    for f in fields(Batch):
        a, b = getattr(one, f.name), getattr(other, f.name)
        a, b = (a, b) if isinstance(a, dict) else ({"": a}, {"": b})
        for key in a.keys() | b.keys():
            x, y = a[key], b[key]
            if isinstance(x, torch.Tensor):
                x, y = torch.nan_to_num(x, -99.0), torch.nan_to_num(y, -99.0)
                if x.dtype != y.dtype or not torch.equal(x, y):
                    return False
            elif x != y:
                return False
    return True


def visits(dataset, plan, epoch=0, part="train", **more):
    return [rows for rows, _ in batches_with_rows(dataset, part, Needs(), plan, epoch=epoch, prefetch=0, **more)]


def test_temperature_one_visits_every_row_once_per_epoch(dataset):
    plan, rows = Plan(batch_size=16, seed=4), dataset.part("train")
    orders = []
    for epoch in range(3):
        seen = visits(dataset, plan, epoch)
        assert [len(s) for s in seen] == [16] * (len(rows) // 16) + [len(rows) % 16]
        assert len(seen) == steps(dataset, "train", plan)
        orders.append(np.concatenate(seen))
        assert np.array_equal(np.sort(orders[-1]), np.arange(len(rows)))
        share = np.diff(rows.offsets) / len(rows)
        for s in seen[:-1]:  # and all along, each domain has its share
            assert (np.abs(np.bincount(rows.domain[s], minlength=3) - 16 * share) <= 2).all()
    assert not np.array_equal(orders[0], orders[1])
    other = np.concatenate(visits(dataset, Plan(batch_size=16, seed=5)))
    assert not np.array_equal(orders[0], other)


def test_rows_shuffled_in_buffers_come_once_an_epoch_too(dataset, monkeypatch):
    monkeypatch.setattr("isthmus.data.shuffle.BLOCK", 5)
    plan, rows = Plan(batch_size=16, seed=4, shuffle_buffer=40), dataset.part("train")
    orders = [np.concatenate(visits(dataset, plan, epoch)) for epoch in range(2)]
    assert all(np.array_equal(np.sort(order), np.arange(len(rows))) for order in orders)
    assert not np.array_equal(*orders)
    assert not np.array_equal(orders[0], np.concatenate(visits(dataset, Plan(batch_size=16, seed=4))))
    begun = visits(dataset, plan, 1, start=3)
    assert np.array_equal(np.concatenate(begun), orders[1][48:])  # taken up in mid-epoch


def test_rows_are_ordered_by_domain_with_exact_offsets(dataset):
    rows = dataset.part("train")
    for position, batch in batches_with_rows(dataset, "train", EVERYTHING, Plan(batch_size=13)):
        assert batch.offsets == tuple(np.searchsorted(batch.domain.numpy(), np.arange(4)).tolist())
        assert (batch.domain.diff() >= 0).all()
        assert len(batch) == batch.offsets[-1] == len(position)
        for name in ("user", "domain", "time"):
            assert getattr(batch, name).tolist() == getattr(rows, name)[position].tolist()
        assert batch.item[:, 0].tolist() == rows.item[position].tolist()
        assert batch.label is not None
        assert batch.label[:, 0].tolist() == rows.label[position].tolist()


@pytest.mark.parametrize("prefetch", [0, 1, 2, 7])
def test_a_batch_is_a_function_of_seed_epoch_and_step(dataset, prefetch):
    plan = Plan(batch_size=20, seed=9, negatives=3, sampler="popularity", history_length=5)
    whole = list(batches(dataset, "train", EVERYTHING, plan, epoch=2, prefetch=0))
    again = list(batches(dataset, "train", EVERYTHING, plan, epoch=2, prefetch=prefetch))
    rest = list(batches(dataset, "train", EVERYTHING, plan, epoch=2, start=4, prefetch=prefetch))
    assert len(again) == len(whole) == len(rest) + 4
    assert all(map(same, whole, again))
    assert all(map(same, whole[4:], rest))
    assert not same(whole[0], next(batches(dataset, "train", EVERYTHING, plan, epoch=3)))
    assert list(batches(dataset, "train", EVERYTHING, plan, start=len(whole))) == []


def test_temperature_zero_gives_equal_shares(dataset):
    plan, rows = Plan(batch_size=30, temperature=0.0), dataset.part("train")
    small = []
    for epoch in range(4):
        for position in visits(dataset, plan, epoch):
            count = np.bincount(rows.domain[position], minlength=3)
            assert count.max() - count.min() <= 1
            small.append(position[rows.domain[position] == 2])
    stream = np.concatenate(small)
    n = SIZES["small"]
    whole = stream[: len(stream) // n * n].reshape(-1, n)
    # A batch holds some rows of a pass and some of the next: pass by pass the stream visits each row once.
    assert (np.sort(whole, axis=1) == np.arange(rows.offsets[2], rows.offsets[3])).all()
    assert len({tuple(w) for w in whole.tolist()}) > 1


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.sampled_from([0.0, 0.5, 1.0]), st.integers(1, 40))
def test_dealing_never_takes_back_and_ends_exactly(sizes, temperature, batch):
    share = np.array(sizes, float) ** temperature
    share /= share.sum()
    order = sorted(((k + 0.5) / s, d) for d, s in enumerate(share) for k in range(3 * sum(sizes) + 1))
    before = np.zeros(len(sizes), int)
    for total in range(0, 2 * sum(sizes) + 1, batch):
        now = dealt(share, total)
        assert now.sum() == total
        assert (now >= before).all()
        assert now.tolist() == np.bincount([d for _, d in order[:total]], minlength=len(sizes)).tolist()
        before = now
    if temperature == 1:
        assert dealt(share, sum(sizes)).tolist() == sizes
        assert dealt(share, 5 * sum(sizes)).tolist() == [5 * n for n in sizes]


@pytest.mark.parametrize("shuffle", [False, True])
def test_how_many_batches_are_worked_out_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch, shuffle: bool) -> None:
    def all_of(rows: int) -> list[tuple[list[int], tuple[int, ...]]]:
        monkeypatch.setattr(order, "RUN", rows)
        found = order.Order(np.array([0, 40, 40, 131]), Plan(7, temperature=0.5), shuffle=shuffle)
        steps = [(epoch, step) for epoch in (1, 0) for step in reversed(range(found.steps))]
        return [(position.tolist(), offsets) for position, offsets in (found.rows(*step) for step in steps)]

    assert all_of(1) == all_of(21) == all_of(10_000)


def test_stored_order_without_shuffle(dataset):
    for part in ("train", "valid"):  # the small domain has no validation rows: an empty slice
        got = visits(dataset, Plan(batch_size=32), part=part, shuffle=False)
        assert np.concatenate(got).tolist() == list(range(len(dataset.part(part))))
        shuffled = np.concatenate(visits(dataset, Plan(batch_size=4), part=part))
        assert sorted(shuffled) == list(range(len(dataset.part(part))))
    last = list(batches(dataset, "valid", Needs(), Plan(batch_size=512)))[-1]
    assert last.offsets[2] == last.offsets[3]


def test_positives_only_leaves_out_clicks_with_label_zero(dataset):
    plan, rows = Plan(batch_size=16), dataset.part("train")
    got = np.concatenate(visits(dataset, plan, positives_only=True))
    assert sorted(got) == np.flatnonzero(rows.label == 1).tolist()
    assert steps(dataset, "train", plan, positives_only=True) == -(-len(got) // 16)
    stored = np.concatenate(visits(dataset, plan, positives_only=True, shuffle=False))
    assert stored.tolist() == np.flatnonzero(rows.label == 1).tolist()


def test_single_domain_control_sees_one_domain(dataset):
    plan, rows = Plan(batch_size=16, domains=(1,), history_length=6), dataset.part("train")
    got = list(batches_with_rows(dataset, "train", EVERYTHING, plan))
    assert sorted(np.concatenate([p for p, _ in got])) == list(range(rows.offsets[1], rows.offsets[2]))
    for _, batch in got:
        assert batch.offsets == (0, 0, len(batch), len(batch))
        assert batch.cross_history is not None
        assert batch.cross_history.shape == (len(batch), 6)
        assert not batch.cross_history.any()
        assert batch.cross_domain is not None
        assert (batch.cross_domain == -1).all()
    stage = next(batches(dataset, "train", EVERYTHING, Plan(batch_size=60, domains=(1,), cross=True)))
    assert stage.cross_history is not None
    assert stage.cross_history.any()
    with pytest.raises(ConfigError, match="domain indices"):
        batches(dataset, "train", Needs(), Plan(domains=(3,)))


def test_histories_are_those_of_the_row(dataset):
    plan = Plan(batch_size=50, history_length=4)
    for batch in batches(dataset, "test", EVERYTHING, plan):
        cut = dataset.history.cut(batch.user.numpy(), batch.time.numpy(), batch.domain.numpy(), 4)
        cross = dataset.history.cut(batch.user.numpy(), batch.time.numpy(), batch.domain.numpy(), 4, others=True)
        for ours, theirs in (("history", "item"), ("history_time", "time"), ("history_behaviour", "behaviour")):
            assert getattr(batch, ours).tolist() == cut[theirs].tolist()
        for name in ("domain", "time", "behaviour"):
            assert getattr(batch, f"cross_{name}").tolist() == cross[name].tolist()
        assert batch.cross_history.tolist() == cross["item"].tolist()
    whole = next(batches(dataset, "test", Needs(history=True, whole_history=True), Plan(batch_size=500, history_length=2)))
    assert whole.history is not None
    assert whole.history.shape[1] > 2


def test_an_untimed_training_row_does_not_find_its_own_answer(untimed):
    plan = Plan(batch_size=64, history_length=40)
    for batch in batches(untimed, "train", EVERYTHING, plan):
        assert not (batch.history == batch.item).any()
        assert batch.history_time is None
        assert batch.time is None
        assert batch.label.tolist() == [[1.0]] * len(batch)
    batch = next(batches(untimed, "valid", EVERYTHING, Plan(batch_size=500, history_length=40)))
    again = (batch.history == batch.item).any(1)  # a validation row's history does not depend on its answer
    known = untimed.known(batch.user.numpy(), batch.domain.numpy(), batch.item.numpy())[:, 0]
    assert again.tolist() == known.tolist()
    assert again.any()


def test_nothing_that_was_not_asked_for(dataset):
    optional = {"history": "history", "cross_history": "cross_history cross_domain", "context": "context"}
    extra = {"behaviour": "history_behaviour cross_behaviour", "history_time": "history_time cross_time time"}
    names = {n for value in (*optional.values(), *extra.values()) for n in value.split()}

    def filled(needs):
        batch = next(batches(dataset, "train", needs, Plan(batch_size=8)))
        return {n for n in names if getattr(batch, n) is not None and getattr(batch, n) != {}}

    assert filled(Needs()) == set()
    for need, given_ in optional.items():
        assert filled(Needs(**{need: True})) == set(given_.split())
    assert filled(Needs(history=True, behaviour=True)) == {"history", "history_behaviour"}
    assert filled(Needs(cross_history=True, history_time=True)) == {"cross_history", "cross_domain", "cross_time", "time"}
    assert next(batches(dataset, "train", Needs(), Plan(), labels=False)).label is None


def test_negatives_follow_the_positive(dataset):
    for position, batch in batches_with_rows(dataset, "train", Needs(), Plan(batch_size=40, negatives=5), positives_only=True):
        assert batch.item.shape == batch.log_q.shape == batch.label.shape == (len(batch), 6)
        assert batch.item[:, 0].tolist() == dataset.part("train").item[position].tolist()
        assert batch.label.tolist() == [[1, 0, 0, 0, 0, 0]] * len(batch)
        catalogue = [set(dataset.catalogue(d).tolist()) for d in range(3)]
        assert all(set(row) <= catalogue[d] for row, d in zip(batch.item.tolist(), batch.domain.tolist(), strict=True))
        user, domain = batch.user.numpy(), batch.domain.numpy()
        known = dataset.known(user, domain, batch.item[:, 1:].numpy()).any(1)
        for row in np.flatnonzero(known):  # only where nothing else is left to draw
            assert dataset.known(user[[row]], domain[[row]], dataset.catalogue(int(domain[row]))[None]).all()
        assert not known.all()


def test_every_step_and_epoch_draws_negatives_of_its_own(dataset):
    for varying in ("step", "epoch"):
        drawn = []
        for k in range(30):
            place = {"start": k} if varying == "step" else {"epoch": k}
            stream = batches(dataset, "train", Needs(), Plan(batch_size=1, negatives=1, domains=(0,)), prefetch=0, **place)
            drawn.append(int(next(stream).item[0, 1]))
        assert np.bincount(drawn).max() < 10  # one stream for all would draw nearly the same each time


def test_context_columns(dataset):
    position, batch = next(batches_with_rows(dataset, "train", EVERYTHING, Plan(batch_size=30)))
    context = dataset.part("train").context
    assert batch.context["hour"].tolist() == context["hour"][position].tolist()
    assert batch.context["hour"].dtype == torch.int64
    assert np.array_equal(batch.context["price"].numpy(), context["price"][position])
    offsets, codes = context["tags"]
    tags = [codes[offsets[p] : offsets[p + 1]].tolist() for p in position]
    width = max(map(len, tags))
    assert batch.context["tags"].tolist() == [t + [0] * (width - len(t)) for t in tags]


def test_ratings_stay_as_they_are(tmp_path):
    events = log(label="rating")
    dataset = encode(events, split.given(events, parts_of(events)), tmp_path / "d")
    position, batch = next(batches_with_rows(dataset, "train", Needs(), Plan(batch_size=50)))
    assert batch.label[:, 0].tolist() == dataset.part("train").label[position].tolist()
    assert batch.label.max() == 5
    assert len(np.concatenate(visits(dataset, Plan(batch_size=50), positives_only=True))) == len(dataset.part("train"))


def test_given_lists_become_batches(tmp_path):
    events = log()
    part = parts_of(events)
    asked = np.unique(np.stack([events.domain, events.user], 1)[part == 2], axis=0)[:4]
    lists = Candidates(asked[:, 1], asked[:, 0], [0, 3, 5, 9, 10], np.arange(10), [1, 0, 0, 1, 0, 1, 0, 0, 0, 1], "real lists")
    dataset = encode(events, split.given(events, part, {"test": lists}), tmp_path / "d")
    coded = dataset.candidates("test")
    length = np.diff(coded.offsets)
    real = np.arange(length.max()) < length[:, None]
    item = np.zeros(real.shape, np.int64)
    item[real] = coded.item
    batch = query_batch(dataset, EVERYTHING, coded.user, coded.domain, np.full(4, 50), item, 3)
    assert batch.item.tolist() == item.tolist()
    assert dataset.item_vocabulary.decode(batch.item[real]).to_list() == events.item_ids.gather(np.arange(10)).to_list()
    assert dataset.user_vocabulary.decode(batch.user).to_list() == events.user_ids.gather(asked[:, 1]).to_list()
    assert batch.item[~torch.tensor(real)].tolist() == [0] * int((~real).sum())  # the caller masks these


def test_query_batch(dataset):
    user, domain, time = np.array([3, 4, 5]), np.array([0, 2, 2]), np.array([40, 50, 60])
    item = np.array([[2, 3], [4, 0], [5, 6]])
    batch = query_batch(dataset, EVERYTHING, user, domain, time, item, 4, context={"hour": np.array([2, 3, 4])})
    assert batch.offsets == (0, 1, 1, 3)
    assert batch.item.tolist() == item.tolist()
    assert batch.time.tolist() == [40, 50, 60]
    assert batch.history.tolist() == dataset.history.cut(user, time, domain, 4)["item"].tolist()
    assert batch.context["hour"].tolist() == [2, 3, 4]
    assert (batch.label, batch.log_q) == (None, None)
    alone = query_batch(dataset, EVERYTHING, user, domain, time, item, 4, cross=False)
    assert alone.cross_history.tolist() == [[0] * 4] * 3
    now = query_batch(dataset, EVERYTHING, user, domain, None, item, 4)
    assert now.history.tolist() == dataset.history.cut(user, np.full(3, 10**9), domain, 4)["item"].tolist()
    with pytest.raises(DataError, match="not ordered by domain"):
        query_batch(dataset, Needs(), user, domain[::-1], time, item)
    with pytest.raises(DataError, match=r"\(B, C\)"):
        query_batch(dataset, Needs(), user, domain, time, item[0])


def test_errors_of_the_background_thread_reach_the_caller():
    def make(number):
        if number == 3:
            raise ValueError("no batch 3")
        return number

    stream = ahead(make, range(10), 2)
    assert [next(stream), next(stream), next(stream)] == [0, 1, 2]
    with pytest.raises(ValueError, match="no batch 3"):
        next(stream)


def test_every_background_thread_begins_as_it_is_told():
    own = threading.local()
    stream = ahead(lambda number: (number, own.begun), range(20), 4, 2, lambda: setattr(own, "begun", True))
    assert list(stream) == [(number, True) for number in range(20)]


def test_closing_ends_the_background_thread(dataset):
    def running():
        return [t for t in threading.enumerate() if t.name.startswith("isthmus-ahead")]

    stream = batches(dataset, "train", EVERYTHING, Plan(batch_size=4), prefetch=3)
    next(stream)
    assert running()
    stream.close()
    assert not running()
    assert len(list(batches(dataset, "train", Needs(), Plan(batch_size=100)))) == 2
    assert not running()


def test_plan_refuses_nonsense():
    for bad in ({"batch_size": 0}, {"seed": -1}, {"negatives": -1}, {"history_length": -1}, {"temperature": -0.5}):
        with pytest.raises(ConfigError, match="at least"):
            Plan(**bad)


def test_a_change_reaches_every_tensor_of_a_batch():
    one = torch.ones(1, dtype=torch.int64)
    pool, target = Pool(one, one, (0, 1), one, one), Targets(one, one, one, (0, 1), one, one, one)
    names = [f.name for f in fields(Batch) if "Tensor" in str(f.type) and f.name != "context"]
    whole = Batch(**dict.fromkeys(names, one), offsets=(0, 1), pool=pool, target=target, context={"x": one})
    changed = whole.map(lambda tensor: tensor + 1)
    for old, new in ((whole, changed), (whole.pool, changed.pool), (whole.target, changed.target)):
        for f in fields(old):
            before, after = getattr(old, f.name), getattr(new, f.name)
            if isinstance(before, torch.Tensor):
                assert (before.item(), after.item()) == (1, 2), f.name
            elif not isinstance(before, (Pool, Targets, dict)):
                assert before == after, f.name
    assert changed.context["x"].item() == 2


def test_batches_lie_where_a_gpu_reads_them(dataset):
    stream = batches(dataset, "train", Needs(), Plan(batch_size=8, pinned=True))
    if torch.cuda.is_available():
        assert next(stream).user.is_pinned()
    else:
        with pytest.raises(RuntimeError):
            next(stream)
