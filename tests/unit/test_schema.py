"""Schema: JSON round trip, refusals, fingerprint."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.errors import CheckpointError, ConfigError
from isthmus.schema import FIELD_KINDS, LABEL_KINDS, Domain, Entity, Field, Schema

names = st.text(min_size=1, max_size=8)
fields = st.lists(st.builds(Field, names, st.sampled_from(FIELD_KINDS), st.integers(0, 99)), max_size=3, unique_by=lambda f: f.name).map(
    tuple
)
schemas = st.builds(
    Schema,
    user=st.builds(Entity, st.just("user"), fields, st.integers(2, 9), st.integers(9, 20)),
    item=st.builds(Entity, st.just("item"), fields, st.integers(2, 9), st.integers(9, 20)),
    domains=st.lists(names, max_size=4, unique=True).map(lambda found: tuple(Domain(n) for n in found)),
    label=st.sampled_from(LABEL_KINDS),
    timed=st.booleans(),
    behaviours=st.lists(names, max_size=3).map(tuple),
    context=fields,
    rating_range=st.none() | st.just((1.0, 5.0)),
)


@given(schemas)
def test_json_round_trip(schema: Schema) -> None:
    again = Schema.from_dict(json.loads(json.dumps(schema.to_dict())))
    assert again == schema
    assert again.fingerprint() == schema.fingerprint()


@given(schemas)
def test_fingerprint_sees_a_size(schema: Schema) -> None:
    larger = dataclasses.replace(schema, item=dataclasses.replace(schema.item, size=schema.item.size + 1))
    assert larger.fingerprint() != schema.fingerprint()


def test_unknown_names_tell_the_nearest() -> None:
    schema = Schema(domains=(Domain("germany"), Domain("france")))
    assert schema.domain_index("france") == 1
    with pytest.raises(ConfigError, match="did you mean 'germany'"):
        schema.domain_index("germny")
    with pytest.raises(ConfigError, match="did you mean 'categorical'"):
        Field("x", "categoric")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="label kind"):
        Schema(label="clicks")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="time unit"):
        Schema(time_unit="minutes")


def test_double_names_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"user fields.*age"):
        Schema(user=Entity("user", (Field("age"), Field("age"))))


@pytest.mark.parametrize("raw", [{}, {"user": {}}, {**Schema().to_dict(), "colour": 1}])
def test_foreign_json_is_refused(raw: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="schema"):
        Schema.from_dict(raw)
