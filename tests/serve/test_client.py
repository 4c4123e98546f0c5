"""The Python client against a service that listens."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

from isthmus.client import Client
from isthmus.errors import ServiceError
from isthmus.serve.service import Settings, create_app
from isthmus.serve.sqlite_histories import SqliteHistories

USER = "u 3/'ü"


@pytest.fixture(scope="module")
def url(chained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with SqliteHistories(tmp_path_factory.mktemp("client") / "live.db") as store:
        app = create_app(Settings([chained.path], watch=0, api_key="sesame"), store)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url, api_key="sesame") as found:
        yield found


def test_questions_and_answers(client: Client) -> None:
    assert client.domains().keys() == {"large", "medium", "small"}
    found = client.recommend("large", user=USER, k=3, why=True)
    assert (len(found), found.basis, found.stale, found.unknown) == (3, "history", False, ())
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert found[0].title == f"Item number {found[0].item[1:]}"
    assert len(found[0].why) > 0
    assert all(reason.title == f"Item number {reason.item[1:]}" and -1 <= reason.cosine <= 1 for reason in found[0].why)
    ranked = client.rank("large", ["i1", "no such", "i2"], user=USER, time=1_050_000, context={"hour": 0.5})
    assert {one.item for one in ranked} == {"i1", "i2"}
    assert ranked.unknown == ("no such",)
    assert len(client.similar("large", "i1", k=4)) == 4
    told = client.recommend("large", history=["i1", {"item": "i2", "behaviour": "buy"}], exclude=["i3"], where={"group": ["a"]})
    assert told.basis == "history"
    assert not {"i1", "i2", "i3"} & {one.item for one in told}


def test_what_is_told_counts_and_what_is_forgotten_does_not(client: Client) -> None:
    before = client.recommend("large", user="new", k=60)
    client.tell("new", "large", before[0].item, behaviour="buy")
    after = client.recommend("large", user="new", k=60)
    assert (before.basis, after.basis) == ("popular", "history")
    assert before[0].item not in {one.item for one in after}
    client.forget("new")
    assert client.recommend("large", user="new", k=60) == before


def test_refusals_say_what_is_wrong(client: Client, url: str) -> None:
    with pytest.raises(ServiceError, match="did you mean 'large'") as wrong:
        client.recommend("larg", user=USER)
    assert wrong.value.status == 404
    with pytest.raises(ServiceError) as negative:
        client.recommend("large", user=USER, k=-1)
    assert (negative.value.status, negative.value.field) == (422, "body.k")
    with Client(url) as stranger, pytest.raises(ServiceError, match="key") as keyless:
        stranger.domains()
    assert keyless.value.status == 401
    with Client("http://127.0.0.1:9", retries=0, timeout=2) as nobody, pytest.raises(ServiceError, match="does not answer") as away:
        nobody.domains()
    assert away.value.status is None
