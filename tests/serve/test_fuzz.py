"""Requests made up from the service's own description: whatever comes, no answer is a server error."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from starlette.testclient import TestClient

from isthmus.serve.service import Settings, create_app
from isthmus.serve.sqlite_histories import SqliteHistories

schemathesis = pytest.importorskip("schemathesis")


def fuzzed(bundle: Path, folder: Path, examples: int) -> Counter[int]:
    """Sends examples to every operation; how often which status came back."""
    found: Counter[int] = Counter()
    with SqliteHistories(folder / "live.db") as store, TestClient(create_app(Settings([bundle], watch=0), store)) as client:
        for result in schemathesis.openapi.from_asgi("/openapi.json", client.app).get_all_operations():
            operation = result.ok()

            @settings(max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy())
            def one(case: Any) -> None:
                if "domain" in case.path_parameters and found.total() % 3:  # made-up names of domains end at once
                    case.path_parameters["domain"] = ("large", "small")[found.total() % 2]
                response = case.call()
                found[response.status_code] += 1
                assert response.status_code < 500, (case.method, case.path, case.body, response.text)

            one()
    return found


@pytest.mark.parametrize("examples", [10, pytest.param(300, marks=pytest.mark.slow)])
def test_no_request_makes_a_server_error(chained, tmp_path: Path, examples: int) -> None:
    found = fuzzed(chained.path, tmp_path, examples)
    assert found.total() > 8 * examples
    assert min(found[200], found[422], found[404]) >= examples / 2
