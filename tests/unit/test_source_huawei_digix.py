"""Huawei DIGIX 2022: both logs in the published layout, small and made by hand."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from isthmus.data.encode import encode
from isthmus.data.events import Events
from isthmus.data.sources import huawei_digix, load
from isthmus.data.split import global_time
from isthmus.errors import ColumnError, ConfigError, LabelError, SourceError

FEEDS = (
    *("u_userId", "u_phonePrice", "u_browserLifeCycle", "u_browserMode", "u_feedLifeCycle", "u_refreshTimes", "u_newsCatInterests"),
    *("u_newsCatDislike", "u_newsCatInterestsST", "u_click_ca2_news", "i_docId", "i_s_sourceId", "i_regionEntity", "i_cat"),
    *("i_entities", "i_dislikeTimes", "i_upTimes", "i_dtype", "e_ch", "e_m", "e_po", "e_pl", "e_rn", "e_section", "e_et"),
    *("label", "cillabel", "pro"),
)
ADS = (
    *("log_id", "label", "user_id", "age", "gender", "residence", "city", "city_rank", "series_dev", "series_group", "emui_dev"),
    *("device_name", "device_size", "net_type", "task_id", "adv_id", "creat_type_cd", "adv_prim_id", "inter_type_cd", "slot_id"),
    *("site_id", "spread_app_id", "hispace_app_tags", "app_second_class", "app_score", "ad_click_list_v001", "ad_click_list_v002"),
    *("ad_click_list_v003", "ad_close_list_v001", "ad_close_list_v002", "ad_close_list_v003", "pt_d", "u_newsCatInterestsST"),
    *("u_refreshTimes", "u_feedLifeCycle"),
)
NEVER = {"log_id", "site_id", "cillabel", "pro", "i_dislikeTimes", "i_upTimes", "label", "pt_d", "e_et"}
MINUTE = 1_654_226_760  # 2022-06-03 03:26, read as UTC


def feed(user: str, doc: str, time: str, label: str, **more: str) -> dict[str, str]:
    return {**dict.fromkeys(FEEDS, "1"), "u_userId": user, "i_docId": doc, "e_et": time, "label": label, **more}


def ad(user: str, adv: str, time: str, label: str, **more: str) -> dict[str, str]:
    return {**dict.fromkeys(ADS, "1"), "user_id": user, "adv_id": adv, "pt_d": time, "label": label, **more}


def write(folder: Path, feeds: list[dict[str, str]], ads: list[dict[str, str]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, columns, rows in (("feeds", FEEDS, feeds), ("ads", ADS, ads)):
        lines = [",".join(row[column] for column in columns) for row in rows]
        (folder / f"train_data_{name}.csv").write_text("\n".join([",".join(columns), *lines]) + "\n")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """User 0001 is in both logs, 2 in feeds and 3 in ads; the article 7 and the material 7 have nothing in common."""
    feeds = [
        feed("0001", "7", "202206030326", "1", u_newsCatInterests="5^6", i_cat="30", i_entities="x^y", i_upTimes="9", e_po="4"),
        feed("0001", "8", "202206030327", "-1", u_newsCatInterests="", i_cat="31", i_entities="", u_phonePrice="13"),
        feed("2", "7", "202206030325", "-1", i_cat="29", i_entities="z", u_feedLifeCycle="17"),
    ]
    ads = [
        ad("0001", "7", "202206030328", "0", age="4", city="", task_id="500", ad_click_list_v001="9^9^8"),
        ad("0001", "7", "202206030326", "1", age="5", city="101", task_id="501", u_feedLifeCycle="12"),
        ad("3", "7", "202206030326", "0", task_id="502"),
    ]
    return write(tmp_path / "data", feeds, ads)


def contexts(events: Events, *names: str) -> list[tuple]:
    return events.frame().select(names).rows()


class TestEvents:
    def test_ids_labels_times_and_domains(self, folder: Path) -> None:
        events = huawei_digix.load(folder).events
        assert events.schema.domain_names == ("feeds", "ads")
        assert (events.schema.label, events.schema.timed, events.schema.time_unit) == ("click", True, "s")
        assert events.frame().select("user", "item", "domain", "time", "label").rows() == [
            ("0001", "feeds 7", "feeds", MINUTE, 1.0),
            ("0001", "feeds 8", "feeds", MINUTE + 60, 0.0),
            ("2", "feeds 7", "feeds", MINUTE - 60, 0.0),
            ("0001", "ads 7", "ads", MINUTE + 120, 0.0),
            ("0001", "ads 7", "ads", MINUTE, 1.0),
            ("3", "ads 7", "ads", MINUTE, 0.0),
        ]
        assert events.dropped == {}

    def test_context_is_as_logged_and_null_in_the_other_log(self, folder: Path) -> None:
        events = huawei_digix.load(folder).events
        assert contexts(events, "age", "city", "u_phonePrice", "e_po") == [
            *[(None, None, "1", "4"), (None, None, "13", "1"), (None, None, "1", "1")],
            *[("4", None, None, None), ("5", "101", None, None), ("1", "1", None, None)],
        ]
        assert contexts(events, "u_feedLifeCycle") == [("1",), ("1",), ("17",), ("1",), ("12",), ("1",)]
        assert contexts(events, "u_newsCatInterests", "ad_click_list_v001") == [
            *[(["5", "6"], []), ([], []), (["1"], [])],
            *[([], ["9", "9", "8"]), ([], ["1"]), ([], ["1"])],
        ]

    def test_items_are_described_by_their_earliest_impression(self, folder: Path) -> None:
        items = huawei_digix.load(folder).events.items
        assert items is not None
        assert items.select("id", "i_cat", "i_entities", "task_id").rows() == [
            ("ads 7", None, None, "501"),  # of two impressions of that minute the first in the file
            ("feeds 7", "29", ["z"], None),
            ("feeds 8", "31", None, None),
        ]

    def test_no_outcome_is_a_field_and_nothing_else_is_lost(self, folder: Path) -> None:
        schema = huawei_digix.load(folder).events.schema
        names = [f.name for f in (*schema.user.fields, *schema.item.fields, *schema.context)]
        assert not NEVER & set(names)
        assert sorted(names) == sorted({*FEEDS, *ADS} - NEVER - {"u_userId", "user_id", "i_docId", "adv_id"})
        multi = {f.name for f in (*schema.item.fields, *schema.context) if f.kind == "multi"}
        assert multi == {n for n in names if "_list_v" in n or n.startswith("u_newsCat") or n in ("u_click_ca2_news", "i_entities")}

    def test_a_training_set_can_be_made(self, tmp_path: Path) -> None:
        feeds = [feed("1", "a", f"2022060303{m:02d}", "1" if m % 2 else "-1", i_entities="" if m % 3 else "x^y") for m in range(30)]
        ads = [ad("1", "a", f"2022060303{m:02d}", str(m % 2)) for m in range(30)]
        events = huawei_digix.load(write(tmp_path / "data", feeds, ads)).events
        data = encode(events, global_time(events), tmp_path / "encoded")
        assert [f.size > 2 for f in data.schema.context] == [True] * len(events.schema.context)

    def test_the_folder_as_published_and_the_environment(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "digix2022").mkdir()
        folder.rename(tmp_path / "digix2022" / "train")
        monkeypatch.setenv("ISTHMUS_DATA", str(tmp_path))
        assert len(load("huawei_digix").events) == 6


class TestUsers:
    def test_common_users_are_those_of_both_logs(self, folder: Path) -> None:
        events = huawei_digix.load(folder, common_users=True).events
        assert events.user_ids.to_list() == ["0001"]
        assert len(events) == 4
        assert events.dropped == {"impressions of users of one log": 2}
        assert events.items is not None
        assert events.items.select("id", "i_cat").rows() == [("ads 7", None), ("feeds 7", "30"), ("feeds 8", "31")]

    @pytest.fixture
    def many(self, tmp_path: Path) -> Path:
        """Users 0 to 199 in feeds, 100 to 299 in ads, two impressions each."""
        feeds = [feed(str(u % 200), "a", f"20220603{u // 200:02d}00", "1") for u in range(400)]
        ads = [ad(str(100 + u % 200), "b", f"20220603{u // 200:02d}00", "1") for u in range(400)]
        return write(tmp_path / "many", feeds, ads)

    def test_a_share_takes_whole_users_and_always_the_same(self, many: Path) -> None:
        every = huawei_digix.load(many).events
        half, again = (huawei_digix.load(many, share=0.5).events for _ in range(2))
        assert half.user_ids.to_list() == again.user_ids.to_list()
        assert len(half.user_ids) == 150
        assert half.user_ids[:6].to_list() == ["0", "1", "10", "100", "101", "103"]  # of every release
        kept = set(half.user_ids)
        assert half.frame().rows() == [row for row in every.frame().rows() if row[0] in kept]
        assert half.dropped == {"impressions of users outside the share": len(every) - len(half)}
        numbers = np.array([int(u) for u in half.user_ids])
        assert 100 < numbers.mean() < 200  # neither the first nor the last of the ids
        assert half.user_ids.to_list() != every.user_ids.sort()[:150].to_list()

    def test_the_share_does_not_hang_on_the_order_of_the_rows(self, many: Path, tmp_path: Path) -> None:
        other = tmp_path / "other"
        other.mkdir()
        for file in many.iterdir():
            head, *lines = file.read_text().splitlines()
            (other / file.name).write_text("\n".join([head, *reversed(lines)]) + "\n")
        a, b = (huawei_digix.load(folder, share=0.3).events for folder in (many, other))
        assert a.user_ids.to_list() == b.user_ids.to_list()

    def test_a_smaller_share_lies_in_a_larger_one_and_none_is_empty(self, many: Path) -> None:
        shares = [set(huawei_digix.load(many, share=share, common_users=True).events.user_ids) for share in (0.001, 0.25, 0.5, 1.0)]
        assert [len(users) for users in shares] == [1, 25, 50, 100]
        assert all(a < b for a, b in pairwise(shares))

    def test_reasons_add_up(self, many: Path) -> None:
        events = huawei_digix.load(many, share=0.5, common_users=True).events
        assert events.dropped == {"impressions of users of one log": 400, "impressions of users outside the share": 200}
        assert len(events) == 200

    @pytest.mark.parametrize("share", [0, -0.5, 1.5, float("nan")])
    def test_a_share_that_is_none(self, folder: Path, share: float) -> None:
        with pytest.raises(ConfigError, match="share="):
            huawei_digix.load(folder, share=share)

    def test_nobody_in_both_logs(self, tmp_path: Path) -> None:
        write(tmp_path, [feed("1", "a", "202206030326", "1")], [ad("2", "b", "202206030326", "1")])
        with pytest.raises(SourceError, match="users of both logs"):
            huawei_digix.load(tmp_path, common_users=True)


class TestDamaged:
    @pytest.mark.parametrize(
        "broken",
        [
            feed("", "7", "202206030326", "1"),
            feed("1", "", "202206030326", "1"),
            feed("1", "7", "20220603032", "1"),  # a digit is missing
            feed("1", "7", "202213030326", "1"),  # there is no month 13
            feed("1", "7", "", "1"),
            feed("1", "7", "202206030326", "0"),  # a label of the other log
            feed("1", "7", "202206030326", ""),
        ],
    )
    def test_invalid_rows_are_dropped_and_counted(self, folder: Path, broken: dict[str, str]) -> None:
        with (folder / "train_data_feeds.csv").open("a") as file:
            file.write(",".join(broken[column] for column in FEEDS) + "\n")
        events = huawei_digix.load(folder).events
        assert len(events) == 6
        assert events.dropped == {"impressions without a user, an item, a time or a label": 1}

    def test_a_row_cut_short_is_dropped(self, folder: Path) -> None:
        file = folder / "train_data_feeds.csv"
        file.write_text(file.read_text().rstrip()[:-12])
        events = huawei_digix.load(folder).events
        assert (len(events), sum(events.dropped.values())) == (5, 1)

    def test_a_missing_file_is_named(self, folder: Path) -> None:
        (folder / "train_data_ads.csv").unlink()
        with pytest.raises(SourceError, match=r"train_data_ads\.csv[\s\S]*DIGIX"):
            huawei_digix.load(folder)

    @pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x08\x00garbage"])
    def test_an_empty_or_foreign_file_is_named(self, folder: Path, content: bytes) -> None:
        (folder / "train_data_ads.csv").write_bytes(content)
        with pytest.raises((SourceError, ColumnError), match=r"train_data_ads\.csv"):
            huawei_digix.load(folder)

    def test_a_missing_column_is_named(self, folder: Path) -> None:
        file = folder / "train_data_feeds.csv"
        file.write_text(file.read_text().replace("i_docId", "i_docid", 1))
        with pytest.raises(ColumnError, match=r"train_data_feeds\.csv has no column 'i_docId'[\s\S]*did you mean 'i_docid'"):
            huawei_digix.load(folder)

    def test_a_log_without_a_click_is_refused(self, tmp_path: Path) -> None:
        write(tmp_path, [feed("1", "a", "202206030326", "1")], [ad("1", "b", "202206030326", "0")])
        with pytest.raises(LabelError, match="ads"):
            huawei_digix.load(tmp_path)

    def test_nothing_is_left_in_the_folder_of_temporary_files(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        place = tmp_path / "temporary"
        place.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(place))
        assert isinstance(huawei_digix.load(folder).events.frame(), pl.DataFrame)
        assert list(place.iterdir()) == []
