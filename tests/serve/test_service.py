"""The service over HTTP: the same scores, live events, faults that name their field, keys, shares, and bundles exchanged while it runs."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from parity import close, questions
from served import run_of, small_data
from starlette.testclient import TestClient

from isthmus.errors import ConfigError, HistoryError, SourceError
from isthmus.export.bundle import export
from isthmus.models import available, get_model
from isthmus.serve.histories import Event, Histories
from isthmus.serve.service import Settings, create_app
from isthmus.serve.sqlite_histories import SqliteHistories

USER = "u 3/'ü"
Ask = Callable[..., Any]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Histories]:
    with SqliteHistories(tmp_path / "live.db") as histories:
        yield histories


@pytest.fixture
def client(chained, store: Histories) -> Iterator[TestClient]:
    with TestClient(create_app(Settings([chained.path], watch=0), store)) as found:
        yield found


def scores(body: dict[str, Any]) -> dict[str, float]:
    return {one["item"]: one["score"] for one in body["items"]}


def test_scores_over_http_equal_those_of_score_in_every_domain(client: TestClient, chained) -> None:
    for q in questions(chained.runs[-1], chained.dataset):
        body = {"user": q.user, "time": q.time, "context": q.context, "candidates": list(q.scores)}
        answer = client.post(f"/v1/{q.domain}/rank", json=body)
        assert answer.status_code == 200
        assert close(scores(answer.json()), q.scores)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(available()))
def test_every_model_is_served_as_it_scores(name: str, tmp_path: Path) -> None:
    task = next((task for task in ("retrieval", "next_item", "ctr", "rating") if task in get_model(name).tasks), "retrieval")
    data = small_data(tmp_path / "data", task=task)
    run = run_of(name, data, task)
    path = export([run], data, tmp_path / "bundle", measured=False)
    with TestClient(create_app(Settings([path], watch=0))) as client:
        asked = list(questions(run, data))
        assert {q.domain for q in asked} == set(data.schema.domain_names)
        for q in asked:
            body = {"user": q.user, "time": q.time, "context": q.context, "candidates": list(q.scores)}
            answer = client.post(f"/v1/{q.domain}/rank", json=body)
            assert answer.status_code == 200, answer.text
            assert close(scores(answer.json()), q.scores), (q, answer.json())


def test_an_event_told_is_in_the_next_answer_and_can_be_forgotten(client: TestClient) -> None:
    before = client.post("/v1/large/recommend", json={"user": "new", "k": 50}).json()
    assert before["basis"] == "popular"
    first = before["items"][0]["item"]
    told = client.post("/v1/events", json={"events": [{"user": "new", "domain": "large", "item": first, "behaviour": "buy"}]})
    assert (told.status_code, told.json()) == (201, {"accepted": 1})
    after = client.post("/v1/large/recommend", json={"user": "new", "k": 50}).json()
    assert after["basis"] == "history"
    assert first not in scores(after)
    assert first in scores(client.post("/v1/large/recommend", json={"user": "new", "k": 50, "exclude_seen": False}).json())
    assert client.get("/v1/history", params={"user": "new"}).json()["domains"]["large"][0]["item"] == first
    assert client.delete("/v1/events", params={"user": "new"}).status_code == 200
    assert client.post("/v1/large/recommend", json={"user": "new", "k": 50}).json() == before


STRANGE = ["'; DROP TABLE events; --", "../../etc/passwd", "%00", "\u0000", "ü/ß 漢字 🙂", "a" * 512, "{{7*7}}", "-1", "null"]


@pytest.mark.parametrize("name", STRANGE)
def test_strange_ids_are_ids_like_others(client: TestClient, name: str) -> None:
    assert client.post("/v1/large/recommend", json={"user": name}).json()["basis"] == "popular"
    event = {"user": name, "domain": "large", "item": "i1", "behaviour": "buy"}
    assert client.post("/v1/events", json={"events": [event]}).status_code == 201
    assert client.post("/v1/large/recommend", json={"user": name}).json()["basis"] == "history"
    answer = client.post("/v1/large/rank", json={"user": name, "candidates": [name, "i1"]}).json()
    assert answer["unknown"] == [name]
    assert client.post("/v1/large/similar", json={"item": name}).status_code == 422
    assert client.get("/v1/items", params={"domain": "large", "q": name[:200]}).status_code == 200


def wrong(route: str, body: Any, code: int, where: str) -> Any:
    return pytest.param(route, body, code, where, id=f"{route}-{str(body)[:40]}")


@pytest.mark.parametrize(
    ("route", "body", "code", "where"),
    [
        wrong("large/recommend", {"user": "u", "k": -3}, 422, "body.k"),
        wrong("large/recommend", {"user": "u", "k": 0}, 422, "body.k"),
        wrong("large/recommend", {"user": "u", "k": 10**9}, 422, "body.k"),
        wrong("large/recommend", {"user": "u", "k": "five"}, 422, "body.k"),
        wrong("large/recommend", {"user": True}, 422, "body.user"),
        wrong("large/recommend", {"user": ""}, 422, "body.user"),
        wrong("large/recommend", {"user": "u" * 513}, 422, "body.user"),
        wrong("large/recommend", {"usr": "u"}, 422, "body.usr"),
        wrong("large/recommend", {"user": "\ud800"}, 422, "body.user"),
        wrong("large/recommend", {"history": ["i1"] * 1001}, 422, "body.history"),
        wrong("large/recommend", {"history": [{"item": "i1", "time": 2**63}]}, 422, "body.history"),
        wrong("large/recommend", {"history": [{"item": "i1", "behaviour": "by"}]}, 422, "behaviour 'by'"),
        wrong("large/recommend", {"context": {"hour": "noon"}}, 422, "context 'hour'"),
        wrong("large/recommend", {"context": {"hours": 1}}, 422, "context 'hours'"),
        wrong("large/recommend", {"where": {"grup": ["a"]}}, 422, "where 'grup'"),
        wrong("large/recommend", [], 422, "body"),
        wrong("large/rank", {"user": "u"}, 422, "body.candidates"),
        wrong("large/rank", {"user": "u", "candidates": []}, 422, "body.candidates"),
        wrong("large/rank", {"user": "u", "candidates": [f"i{n}" for n in range(10_000)]}, 422, "body.candidates"),
        wrong("larg/recommend", {"user": "u"}, 404, "no domain 'larg'"),
        wrong("events", {"events": []}, 422, "body.events"),
        wrong("events", {"events": [{"user": "u", "domain": "larg", "item": "i"}]}, 404, "no domain 'larg'"),
        wrong("events", {"events": [{"user": "u", "domain": "large", "item": "i", "time": 1e3}]}, 422, "body.events.0.time"),
    ],
)
def test_a_wrong_field_is_named(client: TestClient, route: str, body: Any, code: int, where: str) -> None:
    answer = client.post(f"/v1/{route}", content=json.dumps(body), headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == code
    assert where in (error["field"] or "") or where in error["came"]
    assert error["expected"]


def test_bodies_that_are_no_json_or_too_large_are_refused(client: TestClient) -> None:
    as_json = {"content-type": "application/json"}
    assert client.post("/v1/large/recommend", content=b'{"user": ', headers=as_json).status_code == 400
    assert client.post("/v1/large/recommend", content=b"\xff\xfe", headers=as_json).status_code == 400
    big = json.dumps({"user": "u", "exclude": ["x" * 500] * 21_000}).encode()
    assert len(big) > 10_000_000
    assert client.post("/v1/large/recommend", content=big, headers=as_json).status_code == 413
    pieces = (big[n : n + 65_536] for n in range(0, len(big), 65_536))  # without saying how long it is
    answer = client.post("/v1/large/recommend", content=pieces, headers=as_json)
    assert answer.status_code == 413
    assert "too large" in answer.json()["error"]["came"]
    untold = client.post("/v1/large/recommend", content=b'{"user": "u"}', headers={"content-type": "text/plain"})
    assert "Content-Type: application/json" in untold.json()["error"]["expected"]


def test_only_who_knows_the_key_is_answered(chained) -> None:
    with TestClient(create_app(Settings([chained.path], watch=0, api_key="sesame"))) as client:
        ask = {"user": USER}
        assert client.post("/v1/large/recommend", json=ask).status_code == 401
        assert client.post("/v1/large/recommend", json=ask, headers={"X-API-Key": "sesam"}).status_code == 401
        assert client.post("/v1/large/recommend", json=ask, headers={"X-API-Key": "sesame"}).status_code == 200
        assert client.post("/v1/large/recommend", json=ask, headers={"Authorization": "Bearer sesame"}).status_code == 200
        assert client.get("/metrics").status_code == 401
        assert client.get("/healthz").status_code == 200


def test_questions_asked_at_once_get_the_answers_they_get_alone(client: TestClient, chained) -> None:
    asks = [{"user": f"u {n % 50}/'ü", "k": 1 + n % 7} for n in range(60)]
    asks[17] = {"user": USER, "context": {"hour": "noon"}}
    alone = [client.post("/v1/large/recommend", json=ask) for ask in asks]
    with ThreadPoolExecutor(20) as pool:
        together = list(pool.map(lambda ask: client.post("/v1/large/recommend", json=ask), asks))
    for n, (a, b) in enumerate(zip(alone, together, strict=True)):
        assert a.status_code == b.status_code == (422 if n == 17 else 200)
        if n != 17:
            assert [one["item"] for one in a.json()["items"]] == [one["item"] for one in b.json()["items"]]
            assert close(scores(a.json()), scores(b.json()))
    counted = client.get("/metrics").text
    assert 'route="/v1/{domain}/recommend",status="200"} 118.0' in counted
    sizes = {line.split()[0]: float(line.split()[1]) for line in counted.splitlines() if line.startswith("isthmus_batch_size_")}
    assert sizes["isthmus_batch_size_sum"] == 120
    assert sizes["isthmus_batch_size_count"] < 120  # some went together


def test_bundles_share_users_and_each_user_keeps_hers(chained, alone) -> None:
    with TestClient(create_app(Settings([chained.path, alone.path], shares=[1, 3], watch=0))) as client:

        def asked(user: str, **more: Any) -> str:
            return client.post("/v1/large/recommend", json={"user": user, "k": 1}, params=more).json()["bundle"].split("@")[0]

        names = [asked(f"user {n}") for n in range(300)]
        assert names == [asked(f"user {n}") for n in range(300)]
        assert 45 < Counter(names)["chained"] < 105  # of 300, a quarter, by four standard deviations
        assert {asked(f"user {n}", bundle="alone") for n in range(20)} == {"alone"}
        missing = client.post("/v1/large/recommend", json={"user": "u"}, params={"bundle": "alon"})
        assert missing.status_code == 404
        assert "did you mean 'alone'" in missing.json()["error"]["do"]
        assert [one["share"] for one in client.get("/v1/domains").json()["bundles"]] == [0.25, 0.75]


def test_a_new_bundle_takes_over_and_a_damaged_one_does_not(chained, alone, tmp_path: Path) -> None:
    place = tmp_path / "bundle"
    shutil.copytree(chained.path, place)
    with TestClient(create_app(Settings([place], watch=0))) as client:

        def serving() -> str:
            return client.post("/v1/large/recommend", json={"user": USER}).json()["bundle"].split("@")[0]

        def exchanged(source: Path) -> None:
            shutil.move(place, tmp_path / f"old {len(list(tmp_path.iterdir()))}")
            shutil.copytree(source, place)

        assert serving() == "chained"
        exchanged(alone.path)
        assert client.post("/v1/reload").json()["bundles"][0]["served"] is True
        assert serving() == "alone"
        for damage in (half_copied, changed, without_manifest, of_another_format):
            exchanged(chained.path)
            damage(place)
            answer = client.post("/v1/reload")
            assert answer.status_code == 409
            assert answer.json()["bundles"][0]["refused"]
            assert serving() == "alone"
            assert client.get("/readyz").json()["ready"] is True
        exchanged(chained.path)
        assert client.post("/v1/reload").status_code == 200
        assert serving() == "chained"
        assert client.get("/v1/domains").json()["bundles"][0]["refused"] is None
        counted = client.get("/metrics").text
        assert 'isthmus_reloads_total{outcome="refused"} 4.0' in counted


def half_copied(bundle: Path) -> None:
    file = bundle / "0" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def changed(bundle: Path) -> None:
    file = bundle / "1" / "0.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def without_manifest(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()


def of_another_format(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "format": 999}))


@pytest.mark.parametrize("damage", [half_copied, changed, without_manifest, of_another_format])
def test_a_service_does_not_start_from_a_damaged_bundle(damage: Callable[[Path], None], chained, tmp_path: Path) -> None:
    shutil.copytree(chained.path, tmp_path / "bundle")
    damage(tmp_path / "bundle")
    with pytest.raises(SourceError):
        create_app(Settings([tmp_path / "bundle"]))


def test_a_manifest_cannot_name_files_outside_of_its_bundle(alone, tmp_path: Path) -> None:
    shutil.copytree(alone.path, tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    manifest["files"]["../../secret"] = {"bytes": 0, "sha256": ""}
    (tmp_path / "bundle" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SourceError, match="lies outside"):
        create_app(Settings([tmp_path / "bundle"]))


@pytest.mark.parametrize(("paths", "shares"), [(0, None), (1, [1.0, 2.0]), (1, [0.0])])
def test_shares_must_be_those_of_the_bundles(paths: int, shares: list[float] | None, alone) -> None:
    with pytest.raises(ConfigError, match="shares"):
        create_app(Settings([alone.path] * paths, shares))


class Away(Histories):
    """A store that can be made not to answer."""

    kind = "away"

    def __init__(self, inner: Histories) -> None:
        super().__init__()
        self.inner, self.away = inner, False

    def _asked(self) -> Histories:
        if self.away:
            raise HistoryError("the store does not answer", "a store that answers", "start it")
        return self.inner

    def append(self, events: Any) -> None:
        self._asked().append(events)

    def of(self, users: Any, domains: Any) -> Any:
        return self._asked().of(users, domains)

    def forget(self, user: str, domains: Any) -> None:
        self._asked().forget(user, domains)

    def check(self) -> None:
        self._asked().check()

    def close(self) -> None:
        self.inner.close()


def test_without_the_store_answers_come_from_stored_profiles_with_a_warning(chained, store: Histories) -> None:
    away = Away(store)
    with TestClient(create_app(Settings([chained.path], watch=0), away)) as client:
        store.append([Event(USER, "large", "i1", 2_000_000, "buy")])
        live = client.post("/v1/large/recommend", json={"user": USER})
        assert "warning" not in live.headers
        away.away = True
        stored = client.post("/v1/large/recommend", json={"user": USER})
        assert stored.status_code == 200
        assert "live histories do not answer" in stored.headers["warning"]
        assert stored.json()["stale"] is True
        assert scores(stored.json()) != scores(live.json())
        event = {"events": [{"user": USER, "domain": "large", "item": "i2", "behaviour": "buy"}]}
        refused = client.post("/v1/events", json=event)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["ready"]) == (200, True)
        assert "does not answer" in ready.json()["histories"]
        away.away = False
        assert client.post("/v1/large/recommend", json={"user": USER}).json() == live.json()
        assert client.post("/v1/events", json=event).status_code == 201


def test_a_fault_of_its_own_is_told_as_json_without_its_insides(chained, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(Settings([chained.path], watch=0))
    monkeypatch.setattr(app.state.service.variants.all[0].engine, "recommend", lambda *_: 1 / 0)
    with TestClient(app, raise_server_exceptions=False) as client:
        answer = client.post("/v1/large/recommend", json={"user": USER})
        assert answer.status_code == 500
        assert answer.json()["error"]["came"] == "the service failed"
        assert "ZeroDivision" not in answer.text
        assert client.get("/healthz").status_code == 200
        assert 'status="500"} 1.0' in client.get("/metrics").text


def test_without_a_store_events_are_refused(alone) -> None:
    with TestClient(create_app(Settings([alone.path], watch=0))) as client:
        answer = client.post("/v1/events", json={"events": [{"user": "u", "domain": "large", "item": "i1", "behaviour": "buy"}]})
        assert answer.status_code == 404
        assert "--histories" in answer.json()["error"]["came"]
        assert client.get("/v1/domains").json()["events"] is False


def test_the_description_has_an_example_for_every_question(client: TestClient) -> None:
    description = client.get("/openapi.json").json()
    asked = {path for path, one in description["paths"].items() if "requestBody" in one.get("post", {})}
    assert asked == {"/v1/{domain}/recommend", "/v1/{domain}/rank", "/v1/{domain}/similar", "/v1/events"}
    for path in asked:
        name = description["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        assert description["components"]["schemas"][name]["examples"]
