"""What goes over the wire: requests that say what is wrong with them, and the shapes of answers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from isthmus.serve.asks import Answer, Ask, Given
from isthmus.serve.histories import LARGEST

MOST_ITEMS = 500  # of an answer
MOST_CANDIDATES = 5_000
MOST_EVENTS = 1_000  # told with a question, or at once
MOST_VALUES = 1_000  # of filters and exclusions

Text = Annotated[StrictStr, Field(min_length=1, max_length=512)]
Whole = Annotated[StrictInt, Field(ge=-LARGEST - 1, le=LARGEST)]
AnyId = Text | Whole
Label = Annotated[StrictFloat | StrictInt, Field(ge=-1e30, le=1e30)]
Value = StrictStr | StrictInt | StrictFloat | StrictBool | list[Text | Whole] | None


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ToldEvent(_Message):
    """An event told with a question."""

    item: AnyId
    domain: Text | None = Field(None, description="Where it happened; default: the domain asked.")
    time: Whole | None = Field(None, description="In the data's unit of time; default: after all before it.")
    behaviour: Text | None = None
    label: Label | None = None

    def given(self) -> Given:
        """For the engine."""
        return Given(self.item, self.domain, self.time, self.behaviour, self.label)


class Question(_Message):
    """Who asks."""

    user: AnyId | None = Field(None, description="An id as in the data; unknown users are welcome.")
    history: list[AnyId | ToldEvent] | None = Field(
        None, max_length=MOST_EVENTS, description="Events, or item ids, oldest first, instead of those that are kept of the user."
    )
    time: Whole | None = Field(None, description="The moment asked about, in the data's unit; default: now.")
    context: dict[Text, Value] = Field(default_factory=dict, max_length=64, description="Values of the data's context fields.")
    exclude: list[AnyId] = Field(default_factory=list, max_length=MOST_VALUES, description="Items left out.")
    why: StrictBool = Field(False, description="Name the user's events nearest to each item.")

    def who(self) -> dict[str, Any]:
        """What the engine's question needs of it."""
        told = None if self.history is None else [e.given() if isinstance(e, ToldEvent) else Given(e) for e in self.history]
        own = {"user": self.user, "history": told, "time": self.time, "context": self.context}
        return own | {"exclude": self.exclude, "why": self.why}


class RecommendRequest(Question):
    """Ask for the best items of a domain's catalogue."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"user": "u1", "k": 5}, {"history": ["i1", "i2"], "k": 5}]})

    k: Annotated[StrictInt, Field(ge=1, le=MOST_ITEMS)] = 10
    exclude_seen: StrictBool = Field(True, description="Leave out what the user had in this domain.")
    where: dict[Text, Annotated[list[AnyId], Field(max_length=MOST_VALUES)]] = Field(
        default_factory=dict, max_length=64, description="By item field, categories one of which an item must have."
    )

    def ask(self) -> Ask:
        """For the engine."""
        return Ask(**self.who(), k=self.k, exclude_seen=self.exclude_seen, where=self.where)


class RankRequest(Question):
    """Ask for an order of given candidates."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"user": "u1", "candidates": ["i1", "i2", "i3"]}]})

    candidates: list[AnyId] = Field(min_length=1, max_length=MOST_CANDIDATES)
    k: Annotated[StrictInt, Field(ge=1, le=MOST_CANDIDATES)] | None = Field(None, description="The best k of them; default: all.")

    def ask(self) -> Ask:
        """For the engine."""
        return Ask(**self.who(), k=self.k or len(self.candidates), candidates=self.candidates)


class SimilarRequest(_Message):
    """Ask for items like one."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"item": "i1", "k": 5}]})

    item: AnyId
    k: Annotated[StrictInt, Field(ge=1, le=MOST_ITEMS)] = 10


class NewEvent(_Message):
    """Something that a user did."""

    user: AnyId
    domain: Text
    item: AnyId
    time: Whole | None = Field(None, description="In the data's unit of time; default: now.")
    behaviour: Text | None = None
    label: Label | None = None


class EventsRequest(_Message):
    """Tell what users did; the next answer reflects it."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"events": [{"user": "u1", "domain": "books", "item": "i1"}]}]}
    )

    events: list[NewEvent] = Field(min_length=1, max_length=MOST_EVENTS)


class Reason(BaseModel):
    """An event of the user near to an item."""

    item: str | int
    cosine: float
    title: str | None = None


class RankedItem(BaseModel):
    """An item of an answer."""

    item: str | int
    score: float | None
    title: str | None = None
    why: list[Reason] | None = None


class AnswerMessage(BaseModel):
    """A ranked answer."""

    domain: str
    bundle: str = Field(description="Which bundle answered.")
    basis: str = Field(description="history: of events that the model read; profile: of what it learnt of the user; popular: of nothing.")
    items: list[RankedItem]
    unknown: list[str | int] = Field(description="Candidates or events that the bundle cannot place.")
    stale: bool = Field(description="Live histories did not answer: events since the export are not in.")


class SimilarMessage(BaseModel):
    """Items like one, with their cosines."""

    domain: str
    bundle: str
    items: list[RankedItem]


class Fault(BaseModel):
    """What is wrong, what would have been right, what to do; and the field, where it is one."""

    came: str
    expected: str = ""
    do: str = ""
    field: str | None = None


class FaultMessage(BaseModel):
    """An error."""

    error: Fault


def fault(came: str, expected: str = "", do: str = "", field: str | None = None) -> dict[str, Any]:
    """An error as plain values."""
    return FaultMessage(error=Fault(came=came, expected=expected, do=do, field=field)).model_dump()


def items_of(answer: Answer, why: bool) -> list[dict[str, Any]]:
    """The items of an answer as plain values."""
    out: list[dict[str, Any]] = []
    for one in answer.items:
        item: dict[str, Any] = {"item": one.item, "score": one.score if -1e38 < one.score < 1e38 else None}
        if one.title is not None:
            item["title"] = one.title
        if why:
            item["why"] = [{name: value for name, value in asdict(reason).items() if value is not None} for reason in one.why]
        out.append(item)
    return out
