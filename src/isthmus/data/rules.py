"""Splits by the name of their rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from isthmus.data import split as splits
from isthmus.data.events import Events
from isthmus.data.last_day import last_day
from isthmus.data.split import Split
from isthmus.errors import ConfigError, nearest
from isthmus.values import require_arguments

RULES: dict[str, Callable[..., Split]] = {
    "global_time": splits.global_time,
    "leave_last": splits.leave_last,
    "cold_users": splits.cold_users,
    "last_day": last_day,
    "random": splits.random,
}
GIVEN = "given"


def make_split(events: Events, rule: str | None = None, args: Mapping[str, Any] | None = None, brought: Split | None = None) -> Split:
    """The split by a rule, or the one that the source brought, or the default for the data.

    Args:
        events: the events.
        rule: one of ``RULES``, or ``given``; None: what was brought, else the default.
        args: what the rule takes.
        brought: the split that came with the events.

    Raises:
        ConfigError: no such rule, arguments that it does not take or that no rule is there to take, or ``given`` without a given split.
        SplitError: the rule does not fit the events.
    """
    if args and rule in (None, GIVEN):
        raise ConfigError(
            f"arguments of a split without a rule that takes them: {', '.join(args)}", f"rule: one of {tuple(RULES)}", "name the rule"
        )
    if rule == GIVEN or (rule is None and brought is not None):
        if brought is None:
            raise ConfigError(f"split {GIVEN!r}, but the source brings none", f"one of {tuple(RULES)}", "name another rule")
        return brought
    if rule is None:
        return splits.default(events)
    if rule not in RULES:
        raise ConfigError(f"unknown split {rule!r}", f"{GIVEN}, {', '.join(RULES)}", nearest(rule, [*RULES, GIVEN]))
    require_arguments(RULES[rule], args or {}, f"split {rule!r}", "events")
    return RULES[rule](events, **(args or {}))
