"""Algorithm 2 of DADIN: who trains, who is judged, on what; by hand and as properties."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.batch import Needs
from isthmus.data.batches import Plan, batches
from isthmus.data.encode import encode
from isthmus.data.events import Events, read_events
from isthmus.data.last_day import last_day
from isthmus.data.split import PARTS
from isthmus.errors import ConfigError, SplitError

DAY = 86_400


def events(users: int = 40, seed: int = 0, timed: bool = True) -> Events:
    """Users 0 to ``users`` in both domains, ten more in the source alone; days 0 to 9."""
    rng = np.random.default_rng(seed)
    n = users * 12
    user = np.concatenate([rng.integers(0, users + 10, n), np.repeat(np.arange(users), 2)])
    domain = np.where(user >= users, "source", rng.choice(["source", "target"], len(user)))
    domain[n:] = np.tile(["source", "target"], users)
    frame = pl.DataFrame(
        {"user": user, "item": rng.integers(0, 30, len(user)), "domain": domain, "time": rng.integers(0, 10 * DAY, len(user))}
    )
    return read_events(
        frame.with_columns(pl.col("user", "item").cast(pl.String)),
        user="user",
        item="item",
        domain="domain",
        time="time" if timed else None,
    )


def table(log: Events, **args: object) -> pl.DataFrame:
    found = last_day(log, "target", **args)  # type: ignore[arg-type]
    part = pl.Series([PARTS[p] for p in found.part])
    return log.frame().with_columns(part=part, day=pl.col("time") // DAY)


@given(st.floats(0.3, 0.9), st.floats(0.1, 0.9), st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_who_is_judged_and_on_what(train: float, cross: float, seed: int) -> None:
    log = events(seed=seed)
    frame = table(log, train=train, cross=cross, seed=seed)
    target = frame.filter(pl.col("domain") == "target")
    users = target["user"].n_unique()
    judged = target.filter(pl.col("part").is_in(["valid", "test"]))
    last = target.group_by("user").agg(last=pl.col("day").max())
    judged = judged.join(last, on="user")
    assert (judged["day"] == judged["last"]).all()
    assert frame.filter(pl.col("part").is_in(["valid", "test"]))["domain"].unique().to_list() == ["target"]
    both = set(judged.filter(pl.col("part") == "valid")["user"]) & set(judged.filter(pl.col("part") == "test")["user"])
    assert not both
    trained = set(frame.filter(pl.col("part") == "train")["user"])
    source_of = set(frame.filter(pl.col("part") == "known")["user"])
    fresh = set(judged["user"]) - trained
    assert len(fresh) == users - round(train * users)
    assert source_of <= fresh
    assert len(set(judged["user"]) & trained) <= round(cross * round(train * users))  # fewer where a user has that one day alone
    # all of a judged user's last day goes, and a fresh user's earlier events in the target are not used
    rest = target.join(judged.select("user").unique(), on="user").join(last, on="user")
    assert rest.filter((pl.col("day") == pl.col("last")) & ~pl.col("part").is_in(["valid", "test"])).is_empty()
    early = rest.filter(pl.col("user").is_in(list(fresh)) & (pl.col("day") < pl.col("last")))
    assert set(early["part"]) <= {"unused"}


def test_users_of_the_source_alone_train_where_asked() -> None:
    log = events()
    strangers = pl.col("user").is_in([str(u) for u in range(40, 50)])
    assert set(table(log).filter(strangers)["part"]) == {"unused"}
    assert set(table(log, others=True).filter(strangers)["part"]) == {"train"}


def test_ten_seeds_are_ten_resamplings() -> None:
    log = events()
    assert len({last_day(log, "target", seed=seed).hash for seed in range(10)}) == 10
    assert last_day(log, "target", seed=3).hash == last_day(log, "target", seed=3).hash


def test_a_fresh_user_has_a_history_elsewhere_alone(tmp_path: Path) -> None:
    log = events()
    dataset = encode(log, last_day(log, "target"), tmp_path / "data")
    seen = 0
    for batch in batches(dataset, "test", Needs(history=True, cross_history=True), Plan(batch_size=64), prefetch=0):
        assert batch.history is not None
        assert batch.cross_history is not None
        new = dataset.events_of(batch.user.numpy(), 1) == 0
        assert not batch.history[new].any()
        seen += int((batch.cross_history[new] > 0).any(1).sum())
    assert seen > 0


def test_what_is_refused() -> None:
    with pytest.raises(SplitError, match="cold_users"):
        last_day(events(timed=False), "target")
    for args in ({"train": 1.0, "cross": 0.0}, {"train": 0.0}, {"cross": 1.5}):
        with pytest.raises(SplitError, match="shares that leave"):
            last_day(events(), "target", **args)
    with pytest.raises(ConfigError, match="target"):
        last_day(events(), "targe")
