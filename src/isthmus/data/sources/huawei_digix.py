"""Huawei DIGIX 2022: a week of clicks on advertisements and on news by the same people; a domain is a log.

``train_data_feeds.csv`` (domain ``feeds``, the source: about 3.2 million impressions of articles) and
``train_data_ads.csv`` (``ads``, the target: about 7.7 million of advertisements), in one folder or in its ``train``;
columns separated by commas under a heading, lists by ``^``.  The test part is not read: its advertisements have no labels.

A user has one id in both logs (``user_id``, ``u_userId``).  An item is an advertisement's material (``adv_id``) or an
article (``i_docId``); its id here begins with the name of its domain, as they have nothing in common.  A click is the
label 1; 0 in ads and -1 in feeds mean none.  Times (``pt_d``, ``e_et``) are minutes of a clock whose zone is not told;
they become seconds since 1970 as if it were UTC.

Fields keep the names of the files.  What describes the user (person, phone, activity, interests, lists of what she did
before) and the place is context, as it was logged with the impression, since most of it changes; the organisers gave the
same columns with the impressions of their test part.  A column of one log alone is null in the other.  What describes an
item comes from its earliest impression, so that nothing later does.

Left out:

- ``cillabel`` (the article was liked) and ``pro`` (how far it was read): outcomes of the impression itself, labels;
- ``i_upTimes`` and ``i_dislikeTimes``, votes on the article: it is not told up to when they were counted;
- ``log_id``, which numbers the rows, and ``site_id``, of which there is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl

from isthmus.data.events import read_events
from isthmus.data.sources._files import Loaded, find_file, find_folder, reading
from isthmus.errors import ColumnError, ConfigError, SourceError, nearest
from isthmus.schema import Field

ORIGIN = (
    "the 2022 DIGIX Global AI Challenge of Huawei, 'CTR prediction through cross-domain data from ads and news feeds' "
    "(2022_3_data.zip): train_data_ads.csv and train_data_feeds.csv"
)

SEED = 2022  # of the order of the users, of whom ``share`` takes the first


@dataclass(frozen=True, slots=True)
class _Log:
    """One of the two files.

    Attributes:
        domain: its name.
        user, item, time: columns of the ids and the minute.
        no_click: the label of an impression without a click.
        items: what describes the item.
        context: what describes the user and the place.
    """

    domain: str
    user: str
    item: str
    time: str
    no_click: str
    items: tuple[str, ...]
    context: tuple[str, ...]


AD_LISTS = tuple(f"ad_{what}_list_v00{n}" for what in ("click", "close") for n in (1, 2, 3))  # tasks, advertisers, applications
LISTS = ("u_newsCatInterests", "u_newsCatDislike", "u_newsCatInterestsST", "u_click_ca2_news", "i_entities", *AD_LISTS)
LOGS = (
    _Log(
        "feeds",
        *("u_userId", "i_docId", "e_et", "-1"),
        items=("i_s_sourceId", "i_regionEntity", "i_cat", "i_entities", "i_dtype"),
        context=(
            *("u_phonePrice", "u_browserLifeCycle", "u_browserMode", "u_feedLifeCycle", "u_refreshTimes"),
            *("u_newsCatInterests", "u_newsCatDislike", "u_newsCatInterestsST", "u_click_ca2_news"),
            *("e_ch", "e_m", "e_po", "e_pl", "e_rn", "e_section"),
        ),
    ),
    _Log(
        "ads",
        *("user_id", "adv_id", "pt_d", "0"),
        items=(
            *("task_id", "adv_prim_id", "creat_type_cd", "inter_type_cd"),
            *("spread_app_id", "hispace_app_tags", "app_second_class", "app_score"),
        ),
        context=(
            *("age", "gender", "residence", "city", "city_rank", "series_dev", "series_group", "emui_dev", "device_name", "device_size"),
            *("net_type", "slot_id", "u_newsCatInterestsST", "u_refreshTimes", "u_feedLifeCycle", *AD_LISTS),
        ),
    ),
)


def load(path: str | Path | None = None, *, share: float = 1.0, common_users: bool = False) -> Loaded:
    """Timed clicks of the training part; reading takes a copy of about 1 GB in the folder of temporary files.

    Args:
        path: the folder; None searches ``$ISTHMUS_DATA`` for ``huawei_digix`` or ``digix2022``.
        share: of the users, above 0 and at most 1, chosen at random but always alike, with all their impressions; a
            smaller share's users are among a larger one's.
        common_users: only users of both logs; ``share`` is then a share of these.

    Returns:
        Events; ``dropped`` counts what was left out and why.

    Raises:
        SourceError: a file is missing or damaged, or nothing is left.
        ColumnError: a file lacks a column.
        ConfigError: a share that is none.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share={share}", "above 0, at most 1", "1.0 takes all users")
    folder = find_folder(path, ("huawei_digix", "digix2022"), ORIGIN)
    files = {log.domain: find_file(folder, [f"train_data_{log.domain}.csv", f"train/train_data_{log.domain}.csv"], ORIGIN) for log in LOGS}
    with TemporaryDirectory(prefix="isthmus") as place, reading(folder):
        parts = [_valid(log, files[log.domain], Path(place) / f"{log.domain}.parquet") for log in LOGS]
        dropped = {"impressions without a user, an item, a time or a label": sum(total for _, total in parts)}
        frame = pl.concat([part for part, _ in parts], how="diagonal")
        users, counts = _users(frame, share, common_users)
        dropped |= counts
        chosen = frame.join(users.lazy(), on="user", maintain_order="left")
        context = list(dict.fromkeys(name for log in LOGS for name in log.context))
        items = [name for log in LOGS for name in log.items]
        events = read_events(
            chosen,
            user="user",
            item="item",
            domain="domain",
            time="time",
            label="label",
            label_kind="click",
            context=[Field(name, "multi" if name in LISTS else "categorical") for name in context],
            items=_earliest(chosen, items),
            item_id="item",
            item_fields=[Field(name, "multi" if name in LISTS else "categorical") for name in items],
            domains=[log.domain for log in LOGS],
        )
    events.dropped.update({reason: count for reason, count in dropped.items() if count})
    return Loaded(events)


def _valid(log: _Log, file: Path, copy: Path) -> tuple[pl.LazyFrame, int]:
    """A log's valid impressions, in a copy that can be read column by column, and how many are invalid."""
    with reading(file):
        rows = pl.scan_csv(file, infer_schema=False, row_index_name="row")
        names = rows.collect_schema().names()
        for name in (log.user, log.item, log.time, "label", *log.items, *log.context):
            if name not in names:
                raise ColumnError(f"{file} has no column {name!r}", f"one of {', '.join(names)}", nearest(name, names))
        minute = pl.when(pl.col(log.time).str.contains(r"^\d{12}$")).then(pl.col(log.time))
        fields = (pl.col(name).str.split("^") if name in LISTS else pl.col(name) for name in (*log.items, *log.context))
        rows.select(
            pl.col("row").cast(pl.Int64),
            *fields,
            user=log.user,
            item=pl.lit(f"{log.domain} ") + pl.col(log.item),
            domain=pl.lit(log.domain),
            time=minute.str.to_datetime("%Y%m%d%H%M", strict=False).dt.epoch("s"),
            label=pl.col("label").replace_strict({"1": 1, log.no_click: 0}, default=None, return_dtype=pl.Int8),
        ).sink_parquet(copy)
    valid = pl.all_horizontal(pl.col("user", "item", "time", "label").is_not_null())
    written = pl.scan_parquet(copy)
    return written.filter(valid), written.select((~valid).sum()).collect().item()


def _users(rows: pl.LazyFrame, share: float, common: bool) -> tuple[pl.DataFrame, dict[str, int]]:
    """The users to keep, and how many impressions of others there are, by reason."""
    every = rows.group_by("user").agg(pl.len(), domains=pl.col("domain").n_unique()).collect(engine="streaming").sort("user")
    eligible = every.filter(pl.col("domains") == len(LOGS)) if common else every
    order = np.argsort(np.random.Philox(key=SEED).random_raw(len(eligible)), kind="stable")
    users = eligible[np.sort(order[: max(1, round(share * len(eligible)))])]
    if not len(users):
        whose = "users of both logs" if common else "users"
        raise SourceError(
            f"the logs hold no impression of {whose}", "impressions with a user, an item, a time and a label", "get them again"
        )
    seen = [int(table["len"].sum()) for table in (every, eligible, users)]
    return users.select("user"), {
        "impressions of users of one log": seen[0] - seen[1],
        "impressions of users outside the share": seen[1] - seen[2],
    }


def _earliest(rows: pl.LazyFrame, fields: list[str]) -> pl.LazyFrame:
    """Each item once, ascending, with the fields of its earliest impression; of those of one minute, the first in the file."""
    placed = rows.select("item", *fields, place=pl.col("time") * 2**32 + pl.col("row"))
    return placed.join(placed.group_by("item").agg(pl.col("place").min()), on=["item", "place"], how="semi").drop("place").sort("item")
