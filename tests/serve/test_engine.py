"""Served answers, without a network: equal to ``score``, live, filtered, chained, and honest about what they rest on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from parity import close, questions
from served import run_of

from isthmus.data.dataset import Dataset
from isthmus.errors import ConfigError
from isthmus.export.bundle import export
from isthmus.retrieve import retrieve
from isthmus.serve.asks import Answer, Ask, Given
from isthmus.serve.bundle import Bundle
from isthmus.serve.engine import Engine
from isthmus.serve.histories import Event
from isthmus.serve.sqlite_histories import SqliteHistories

USER = "u 3/'ü"


@pytest.fixture(scope="module")
def engine(chained) -> Engine:
    return Engine(Bundle.load(chained.path))


@pytest.fixture(scope="module")
def retriever(alone) -> Engine:
    return Engine(Bundle.load(alone.path))


def scores(answer: Answer) -> dict:
    return {one.item: one.score for one in answer.items}


@pytest.mark.parametrize("which", ["chained", "alone"])
def test_served_scores_equal_those_of_score_in_every_domain(which: str, request: pytest.FixtureRequest) -> None:
    made = request.getfixturevalue(which)
    engine, run = Engine(Bundle.load(made.path)), made.runs[-1]
    asked = list(questions(run, made.dataset))
    assert {q.domain for q in asked} == set(made.dataset.schema.domain_names)
    for q in asked:
        ask = Ask(q.user, time=q.time, context=q.context, candidates=list(q.scores), k=100)
        assert close(scores(engine.recommend([ask], q.domain)[0]), q.scores)


def test_questions_of_one_batch_do_not_disturb_each_other(engine: Engine, chained) -> None:
    asked = [q for q in questions(chained.runs[-1], chained.dataset) if q.domain == "large"]
    asks = [Ask(q.user, time=q.time, context=q.context, candidates=list(q.scores)[: 3 + n % 5], k=100) for n, q in enumerate(asked)]
    together = engine.recommend(asks, "large")
    for ask, answer in zip(asks, together, strict=True):
        assert close(scores(answer), scores(engine.recommend([ask], "large")[0]))


@pytest.mark.parametrize("domain", ["large", "medium", "small"])
def test_the_best_of_a_retriever_are_those_that_retrieve_finds(retriever: Engine, alone, domain: str) -> None:
    run, dataset = alone.runs[0], alone.dataset
    users = [f"u {n}/'ü" for n in range(0, 50, 7)]
    d = dataset.schema.domain_index(domain)
    found = retrieve(run.model, dataset, dataset.user_vocabulary.encode(users), d, k=10, how=run.how)
    for n, answer in enumerate(retriever.recommend([Ask(user, k=10) for user in users], domain)):
        expected = dataset.item_vocabulary.decode(found.item[n][found.item[n] > 0]).to_list()
        if answer.basis != "popular":
            assert [one.item for one in answer.items] == expected
            np.testing.assert_allclose([one.score for one in answer.items], found.score[n][: len(expected)], rtol=1e-4, atol=1e-5)


def test_a_chain_ranks_what_the_retriever_finds(engine: Engine, retriever: Engine) -> None:
    found = {one.item for one in retriever.recommend([Ask(USER, k=500)], "large")[0].items}
    chained = engine.recommend([Ask(USER, k=500)], "large")[0]
    assert {one.item for one in chained.items} == found
    ranked = engine.recommend([Ask(USER, candidates=sorted(found), k=500)], "large")[0]
    assert [one.item for one in chained.items] == [one.item for one in ranked.items]
    assert [one.score for one in chained.items] == sorted((one.score for one in chained.items), reverse=True)


def test_live_events_are_in_the_next_answer_and_items_had_are_not(retriever: Engine, alone, tmp_path: Path) -> None:
    with SqliteHistories(tmp_path / "live.db") as store:
        live = Engine(retriever.bundle, store)
        before = live.recommend([Ask("nobody", k=5)], "large")[0]
        assert before.basis == "popular"
        store.append([live.users.event("nobody", "large", before.items[0].item, None, "buy", None)])
        after = live.recommend([Ask("nobody", k=60)], "large")[0]
        assert after.basis == "history"
        assert before.items[0].item not in scores(after)
        told = retriever.recommend([Ask(history=[Given(before.items[0].item, behaviour="buy")], k=60)], "large")[0]
        assert scores(after) == scores(told)
        known = live.recommend([Ask(USER, k=60)], "large")[0]
        store.append([live.users.event(USER, "large", known.items[0].item, None, "buy", None)])
        assert scores(live.recommend([Ask(USER, k=60)], "large")[0]) != scores(known)


def test_an_event_that_the_bundle_knows_too_counts_once(retriever: Engine, alone, tmp_path: Path) -> None:
    past = retriever.bundle.profiles.of(int(retriever.bundle.users.codes([USER])[0]))
    with SqliteHistories(tmp_path / "live.db") as store:
        names = retriever.bundle.items.names(past.item)
        behaviours = retriever.bundle.schema.behaviours
        assert past.time is not None
        assert past.behaviour is not None
        store.append(
            [
                Event(USER, retriever.bundle.domains[d], item, int(t), behaviours[b - 1])
                for item, d, t, b in zip(names, past.domain, past.time, past.behaviour, strict=True)
            ]
        )
        twice = Engine(retriever.bundle, store).recommend([Ask(USER, k=60)], "large")[0]
    assert scores(twice) == scores(retriever.recommend([Ask(USER, k=60)], "large")[0])


def test_what_was_not_clicked_enters_no_history(retriever: Engine) -> None:
    clicked = [Given("i1", behaviour="view", label=1.0), Given("i2", behaviour="view", label=0.0)]
    assert scores(retriever.recommend([Ask(history=clicked, exclude_seen=False)], "large")[0]) == scores(
        retriever.recommend([Ask(history=clicked[:1], exclude_seen=False)], "large")[0]
    )


def test_the_moment_asked_about_decides_what_counts(engine: Engine, retriever: Engine) -> None:
    past = retriever.bundle.profiles.of(int(retriever.bundle.users.codes([USER])[0]))
    assert past.time is not None
    first, last = int(past.time[0]), int(past.time[-1]) + 1
    assert engine.recommend([Ask(USER, time=first)], "large")[0].basis == "profile"
    early = retriever.recommend([Ask(USER, k=5, time=first)], "large")[0]
    assert early.basis == "popular", "a model that reads histories alone learnt nothing of her"
    assert early.items == retriever.recommend([Ask("nobody", k=5)], "large")[0].items
    assert retriever.recommend([Ask(USER, time=last)], "large")[0].basis == "history"


def test_a_model_that_reads_nothing_of_users_answers_all_alike(dataset: Dataset, tmp_path: Path) -> None:
    run = run_of("popularity", dataset)
    engine = Engine(Bundle.load(export([run], dataset, tmp_path / "bundle", measured=False)))
    found = [engine.recommend([Ask(user, k=60, exclude_seen=False)], "small")[0] for user in (USER, "nobody")]
    assert found[0] == found[1]
    assert found[0].basis == "popular"
    own = engine.recommend([Ask(USER, candidates=list(scores(found[0])), k=60)], "small")[0]
    assert scores(own) == scores(found[0]), "the model's own scores, however asked"


def test_popular_items_in_their_order_for_who_is_unknown(engine: Engine, chained) -> None:
    answer = engine.recommend([Ask("nobody", k=5)], "small")[0]
    counts = chained.dataset.popularity(2)
    assert answer.basis == "popular"
    assert [one.score for one in answer.items] == sorted(counts[chained.dataset.catalogue(2, "test")], reverse=True)[:5]
    assert [one.score for one in answer.items] == [counts[chained.dataset.item_vocabulary.encode([one.item])[0]] for one in answer.items]


@pytest.mark.parametrize("user", [USER, "nobody"])
@pytest.mark.parametrize("which", ["engine", "retriever"])
def test_filters_and_exclusions_leave_only_what_was_asked_for(which: str, user: str, request: pytest.FixtureRequest) -> None:
    engine: Engine = request.getfixturevalue(which)
    fields = {name: engine.bundle.fields[name] for name in ("group", "tags")}
    every = engine.recommend([Ask(user, k=100, exclude_seen=False)], "large")[0]
    ids = [one.item for one in every.items]
    code = engine.bundle.items.codes(ids)
    wanted = {"group": ["a", "b"], "tags": ["t1"]}
    right = np.all([fields[name].has(fields[name].values.codes(values), code) for name, values in wanted.items()], 0)
    kept = [item for item, ok in zip(ids, right, strict=True) if ok]
    assert 0 < len(kept) < len(ids)
    found = engine.recommend([Ask(user, k=100, exclude_seen=False, where=wanted, exclude=kept[:1])], "large")[0]
    assert [one.item for one in found.items] == kept[1:]
    assert engine.recommend([Ask(user, where={"group": ["no such"]})], "large")[0].items == ()


def test_candidates_that_nobody_knows_are_named_and_not_ranked(engine: Engine, retriever: Engine) -> None:
    for one in (engine, retriever):
        answer = one.recommend([Ask(USER, candidates=["i1", "no such", "i2", "i1"])], "large")[0]
        assert set(scores(answer)) <= {"i1", "i2"}
        assert "no such" in answer.unknown
        assert set(scores(answer)) | set(answer.unknown) == {"i1", "i2", "no such"}
    empty = engine.recommend([Ask(USER, candidates=["no such"])], "large")[0]
    assert empty.items == ()


def test_similar_items_point_the_same_way(retriever: Engine, alone) -> None:
    found = retriever.similar("i1", "large", 5)
    index = retriever.bundle.stages[0].indexes[0]
    vectors = index.vectors.numpy() / np.linalg.norm(index.vectors.numpy(), axis=1, keepdims=True)
    at = int(np.flatnonzero(index.item == retriever.bundle.items.codes(["i1"])[0])[0])
    cosine = vectors @ vectors[at]
    cosine[at] = -2
    assert [one.item for one in found] == retriever.bundle.items.names(index.item[np.argsort(-cosine)[:5]])
    assert found[0].score == pytest.approx(float(cosine.max()), abs=1e-6)


def test_reasons_are_the_users_own_events(retriever: Engine) -> None:
    answer = retriever.recommend([Ask(USER, why=True, k=3)], "large")[0]
    past = retriever.bundle.profiles.of(int(retriever.bundle.users.codes([USER])[0]))
    own = set(retriever.bundle.items.names(past.item[past.domain == 0]))
    for one in answer.items:
        assert {reason.item for reason in one.why} <= own
        assert len(one.why) == min(3, len(own))


def test_titles_are_shown_where_there_are_some(engine: Engine, retriever: Engine) -> None:
    assert {
        one.title for one in engine.recommend([Ask(candidates=["i5", "i6"], history=[Given("i1", behaviour="buy")])], "large")[0].items
    } <= {
        "Item number 5",
        "Item number 6",
    }
    assert {one.title for one in retriever.recommend([Ask(USER)], "large")[0].items} == {None}


@pytest.mark.parametrize(
    ("ask", "domain", "message"),
    [
        (Ask(USER), "larg", "did you mean 'large'"),
        (Ask(USER, where={"grup": ["a"]}), "large", "did you mean 'group'"),
        (Ask(USER, context={"devise": "phone"}), "large", "did you mean 'device'"),
        (Ask(USER, context={"hour": "noon"}), "large", "a finite number"),
        (Ask(history=[Given("i1", behaviour="by")]), "large", "did you mean 'buy'"),
        (Ask(history=[Given("i1", domain="larg", behaviour="buy")]), "large", "did you mean 'large'"),
    ],
)
def test_what_cannot_be_answered_is_told(engine: Engine, ask: Ask, domain: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine.recommend([ask], domain)


def test_similar_items_need_a_known_one(retriever: Engine) -> None:
    with pytest.raises(ConfigError, match="an item of domain 'large'"):
        retriever.similar("no such", "large")
