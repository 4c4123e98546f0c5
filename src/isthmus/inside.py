"""``look_inside``: what a fitted model shows of itself, on average and for single users as of now."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isthmus.errors import ConfigError
from isthmus.how import How
from isthmus.insight import Insight
from isthmus.model import Model
from isthmus.models import available, get_model
from isthmus.retrieve import batch_now
from isthmus.schema import FIRST

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset

AVERAGE = "on average"
EXAMPLES = 3
SEARCHED = 50_000  # user ids among which a similar one is looked for
CHOSEN = f"One of the {EXAMPLES} users with events in the most domains, among equals those with the most events; as of now."


def look_inside(
    model: Model, dataset: Dataset, users: Sequence[Any] | None = None, domain: str | None = None, *, how: How | None = None
) -> dict[str, list[Insight]]:
    """What a fitted model shows, by headings such as ``on average`` and ``user u1``.

    Args:
        model: a fitted model.
        dataset: with the schema that the model was built for.
        users: ids as in the data; None: averages.
        domain: the one target domain to ask single users about; None: all that were trained.
        how: the settings of its training: history length, and which domains.

    Returns:
        The looks; none for a user without events.

    Raises:
        ConfigError: no such user or domain, a domain without users, data of another schema, or a model that has nothing to show.
    """
    if model.schema.fingerprint() != dataset.schema.fingerprint():
        raise ConfigError(f"data of another schema than the {_name(model)}'s", "the data that the run was fitted on", "give these")
    if users is None:
        if domain is not None:
            raise ConfigError(f"domain {domain!r} without users", "users to ask about it", "name some; averages are of all domains")
        found = {AVERAGE: model.insights(dataset)}
        if not found[AVERAGE]:
            raise _nothing(model, "insights", "on average")
        return found
    how = how or How()
    targets = _trained(dataset, how) if domain is None else [dataset.schema.domain_index(domain)]
    codes = _codes(dataset, users)
    looks = [_of_user(model, dataset, code, targets, how) for code in codes]
    if type(model).look is Model.look or (any(seen is not None for seen in looks) and not any(looks)):
        raise _nothing(model, "look", "of single users")
    return {f"user {user}": seen or [] for user, seen in zip(users, looks, strict=True)}


def examples(model: Model, dataset: Dataset, how: How) -> list[Insight]:
    """What the model shows of a few users who did much; each look says whose it is, and how she was chosen."""
    if type(model).look is Model.look:
        return []
    found: list[Insight] = []
    for code in example_users(dataset):
        user = dataset.user_vocabulary.decode([code])[0]
        for seen in _of_user(model, dataset, code, _trained(dataset, how), how) or []:
            changes = {"name": f"{seen.name}-user-{user}", "title": f"{seen.title}, user {user}", "note": f"{CHOSEN} {seen.note}"}
            found.append(dataclasses.replace(seen, **changes))
    return found


def example_users(dataset: Dataset) -> list[int]:
    """Codes of the users with histories in the most domains; among equals the most events, then the smaller code."""
    history = dataset.history
    user, first, domains = np.unique(history.pair[:-1] // history.domains, return_index=True, return_counts=True)
    events = np.add.reduceat(np.diff(history.start), first) if len(first) else first
    return user[np.lexsort((user, -events, -domains))[:EXAMPLES]].tolist()


def _of_user(model: Model, dataset: Dataset, code: int, targets: Sequence[int], how: How) -> list[Insight] | None:
    """None: no events for the model to read."""
    batches = [batch_now(model, dataset, np.array([code]), target, how) for target in targets]
    histories = [h for b in batches for h in (b.history, b.cross_history) if h is not None]
    return model.look(dataset, batches) if not histories or any(h.any() for h in histories) else None


def _trained(dataset: Dataset, how: How) -> list[int]:
    """Domains that were trained on, and so can be asked for."""
    tested = sum(np.diff(np.asarray(dataset.part(part).offsets)) for part in ("valid", "test"))
    every = np.flatnonzero(tested) if how.train_on == "tested" else np.arange(len(dataset.schema.domains))
    return [d for d in every.tolist() if how.domains is None or d in how.domains]


def _codes(dataset: Dataset, users: Sequence[Any]) -> list[int]:
    codes = dataset.user_vocabulary.encode(users).tolist()
    for user, code in zip(users, codes, strict=True):
        if code < FIRST:
            ids = dataset.user_vocabulary.ids
            close = difflib.get_close_matches(str(user), map(str, ids.head(SEARCHED)), n=1)
            do = f"did you mean {close[0]!r}?" if close else "give an id as it stands in the data"
            raise ConfigError(f"no user {user!r} in {dataset.path}", f"one of its {len(ids):,} users, such as {str(ids[0])!r}", do)
    return codes


def _nothing(model: Model, ask: str, what: str) -> ConfigError:
    """A model that does not answer, and those that do."""
    usual = getattr(Model, ask)
    names = [name for name in available() if getattr(get_model(name), ask) is not usual]
    settings = f" with {model.args}" if model.args and getattr(type(model), ask) is not usual else ""
    came = f"{_name(model)}{settings}, which has nothing to show {what}"
    return ConfigError(came, f"one of: {', '.join(names)}", "fit one of these")


def _name(model: Model) -> str:
    return type(model).__name__
