"""The page to try a service, as people use it: a real browser before a real service."""

from __future__ import annotations

import json
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from isthmus.errors import HistoryError
from isthmus.serve.histories import Event, Histories
from isthmus.serve.service import PAGE, Settings, create_app
from isthmus.serve.sqlite_histories import SqliteHistories

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page, Route

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
uvicorn = pytest.importorskip("uvicorn", reason="needs uvicorn: pip install 'isthmus[serve]'")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser on the path: chromium")

DOMAINS = ("large", "medium", "small")
USER = "u 3/'ü"
NASTY = "<img src=x onerror=\"document.title='broken into'\">"
KEY = "k€y"
expect = playwright.expect


@contextmanager
def serving(settings: Settings, histories: Histories | None) -> Iterator[str]:
    """The address of a service that runs in a thread; what connects before it is up waits in line."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        app = create_app(settings, histories)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


class MayBeAway(SqliteHistories):
    """A store that can be told not to answer."""

    away = False

    def of(self, users: Sequence[str], domains: Sequence[str]) -> list[dict[str, list[Event]]]:
        if self.away:
            raise HistoryError("the store does not answer", "a store that does", "start it")
        return super().of(users, domains)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MayBeAway]:
    with MayBeAway(tmp_path_factory.mktemp("page") / "live.db") as histories:
        yield histories


@pytest.fixture(scope="module")
def address(chained: Any, store: MayBeAway) -> Iterator[str]:
    with serving(Settings([chained.path], watch=0), store) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=20_000)
    with playwright.sync_playwright() as engine:
        found = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@dataclass
class Visit:
    """A person before the page, and all that went wrong meanwhile."""

    page: Page
    address: str
    wrong: list[str] = field(default_factory=list)

    def open(self, state: str = "") -> Page:
        """The page as a link with this state shows it."""
        self.page.goto("about:blank")  # a new hash alone would load nothing
        self.page.goto(f"{self.address}#{state}")
        return self.page

    def forgive(self, text: str) -> None:
        """Takes back what a test meant to go wrong."""
        assert any(text in one for one in self.wrong), self.wrong
        self.wrong[:] = [one for one in self.wrong if text not in one]


Visitor = Callable[..., Visit]


@pytest.fixture
def visitor(browser: Browser, address: str) -> Iterator[Visitor]:
    """Makes visits; at their end the console has shown no error, and nothing was asked of other hosts."""
    visits: list[Visit] = []

    def make(where: str = address, **options: Any) -> Visit:
        page = browser.new_context(**options).new_page()
        page.set_default_timeout(20_000)
        visit = Visit(page, where)
        page.on("console", lambda message: visit.wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: visit.wrong.append(str(error)))
        page.on("dialog", lambda dialog: (visit.wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: visit.wrong.append(request.url) if not request.url.startswith((where, "data:")) else None)
        visits.append(visit)
        return visit

    yield make
    for visit in visits:
        visit.page.context.close()
    assert [one for visit in visits for one in visit.wrong if one != "about:blank"] == []


@pytest.fixture
def visit(visitor: Visitor) -> Visit:
    return visitor()


def card(page: Page, domain: str) -> Locator:
    return page.get_by_role("article", name=domain, exact=True)


def ranked(page: Page, domain: str) -> Locator:
    return page.get_by_role("list", name=f"Recommended in {domain}").get_by_role("listitem")


def had(page: Page, domain: str) -> Locator:
    return page.get_by_role("region", name=f"History in {domain}").get_by_role("listitem")


def badge(page: Page, domain: str) -> Locator:
    return card(page, domain).locator(".badge")


def suggestions(page: Page) -> Locator:
    return page.get_by_role("listbox", name=re.compile("^Matching")).get_by_role("option")


def chosen(page: Page) -> Locator:
    return page.get_by_role("listbox", name=re.compile("^Matching")).get_by_role("option", selected=True)


def state(page: Page) -> str:
    return page.url.partition("#")[2]


def answer_with(change: Mapping[str, Any]) -> Callable[[Route], None]:
    """Answers as the service does but for what is to be changed."""

    def handle(route: Route) -> None:
        route.fulfill(response=(found := route.fetch()), body=json.dumps({**found.json(), **change}))

    return handle


def test_a_user_is_found_by_typing_and_her_history_is_what_the_answer_rests_on(visit: Visit) -> None:
    page = visit.open("domain=large")
    field = page.get_by_role("combobox", name="User")
    field.press_sequentially("u 3")
    options = suggestions(page)
    expect(options.last).to_have_text("“u 3” as typed")
    expect(options.filter(has_text=USER)).to_have_count(1)
    while field.get_attribute("aria-activedescendant") != options.filter(has_text=USER).get_attribute("id"):
        field.press("ArrowDown")
    expect(chosen(page)).to_have_text(USER)
    field.press("Enter")
    expect(badge(page, "large")).to_have_text("history")
    expect(card(page, "large")).to_contain_text("The model read what this user did until now.")
    expect(card(page, "large").locator("header")).to_contain_text(re.compile(r"\d ms"))
    expect(page.get_by_role("banner")).to_contain_text(re.compile(r"chained@\w{12} · sasrec → mmoe"))
    assert field.input_value() == USER
    assert ranked(page, "large").count() == 10
    first = ranked(page, "large").first
    expect(first.locator(".name")).to_contain_text(re.compile(r"Item number (\d+)i\1$"))
    expect(first.locator(".score")).to_have_text(re.compile(r"^−?[\d.]{5,}$"))
    expect(ranked(page, "large").filter(has_text=re.compile(r"because of Item number \d+\s0\.\d\d")).first).to_be_visible()
    expect(had(page, "large").first).to_contain_text("Item number")
    expect(page.get_by_role("status")).to_have_text("large: 10 items, based on history.")
    names = page.locator(".ranked .name").all_text_contents()
    page = visit.open(state(page))  # the link alone shows the same
    expect(page.locator(".ranked .name")).to_have_text(names)


def test_escape_closes_the_suggestions_and_leaves_the_user_as_before(visit: Visit) -> None:
    page = visit.open("user=u+1")
    field = page.get_by_role("combobox", name="User")
    expect(field).to_have_value("u 1")
    field.click()
    expect(suggestions(page).first).to_be_visible()
    field.press_sequentially("u 4")
    expect(suggestions(page).last).to_have_text("“u 4” as typed")
    assert field.get_attribute("aria-expanded") == "true"
    field.press("Escape")
    expect(suggestions(page)).to_have_count(0)
    expect(field).to_have_value("u 1")
    assert field.get_attribute("aria-expanded") == "false"


def test_all_domains_side_by_side_one_alone_and_back(visit: Visit) -> None:
    page = visit.open(f"domain=medium&user={USER}")
    expect(ranked(page, "medium")).to_have_count(10)
    expect(page.get_by_role("article")).to_have_count(1)
    page.get_by_role("radio", name="All side by side").check()
    for domain in DOMAINS:
        expect(ranked(page, domain)).to_have_count(10)
        expect(badge(page, domain)).to_have_text(re.compile("history|profile"))
    boxes = [card(page, domain).bounding_box() or {} for domain in DOMAINS]
    assert len({box["y"] for box in boxes}) == 1
    assert len({(page.get_by_role("list", name=f"Recommended in {d}").bounding_box() or {})["y"] for d in DOMAINS}) == 1
    page.get_by_role("radio", name="All side by side").press("ArrowRight")
    expect(page.get_by_role("article")).to_have_count(1)
    expect(ranked(page, "large")).to_have_count(10)
    page.go_back()
    expect(page.get_by_role("article")).to_have_count(3)


def test_how_many_items_and_whether_those_already_had(visit: Visit) -> None:
    page = visit.open(f"domain=large&user={USER}")
    expect(ranked(page, "large")).to_have_count(10)
    page.get_by_label("Items", exact=True).select_option("100")
    expect(ranked(page, "large").nth(10)).to_be_visible()
    hidden = ranked(page, "large").count()
    page.get_by_label("Hide items already had").uncheck()
    expect(ranked(page, "large").nth(hidden)).to_be_visible()
    page = visit.open(state(page))
    expect(page.get_by_label("Hide items already had")).not_to_be_checked()
    expect(page.get_by_label("Items", exact=True)).to_have_value("100")


def test_a_history_by_hand_for_nobody(visit: Visit) -> None:
    page = visit.open()
    page.get_by_role("radio", name="A history by hand").check()
    for domain in DOMAINS:
        expect(badge(page, domain)).to_have_text("popular")
    field, chips = page.get_by_role("combobox", name="Add an item"), page.get_by_role("list", name="History, oldest first")
    for title in ("Item number 7", "item NUMBER 12"):
        field.press_sequentially(title)
        field.press("Enter")  # faster than suggestions come
        expect(chips.get_by_role("listitem").filter(has_text=re.compile(title, re.IGNORECASE))).to_have_count(1)
    expect(chips.get_by_role("listitem")).to_have_text([re.compile("Item number 7"), re.compile("Item number 12")])
    expect(badge(page, "large")).to_have_text("history")
    expect(ranked(page, "large").filter(has_text=re.compile("i7$"))).to_have_count(0)
    page.get_by_role("button", name="Remove Item number 7", exact=True).click()
    expect(chips.get_by_role("listitem")).to_have_text([re.compile("Item number 12")])
    expect(page.get_by_role("button", name="Remove Item number 12")).to_be_focused()
    expect(page.get_by_role("button", name="Did this")).to_have_count(0)
    page.get_by_label("From domain").select_option("small")
    field.press_sequentially("no such item")
    field.press("Enter")
    expect(card(page, "small")).to_contain_text("Not known to this bundle: no such item")
    expect(page).to_have_url(re.compile(r"in=large&item=i12&in=small&item=no\+such\+item$"))
    page = visit.open(state(page))
    expect(chips.get_by_role("listitem")).to_have_text([re.compile("large: Item number 12"), re.compile("small: no such item")])
    expect(page.get_by_label("From domain")).to_have_value("large")
    page.get_by_role("radio", name=re.compile("^medium")).check()
    expect(page.get_by_label("From domain")).to_have_value("medium")
    page.get_by_role("button", name=re.compile("^Add: ")).first.click()
    expect(chips.get_by_role("listitem")).to_have_count(3)


def test_what_she_did_is_in_her_history_and_no_longer_recommended(visit: Visit) -> None:
    page = visit.open("domain=large&user=somebody+new")
    expect(badge(page, "large")).to_have_text("popular")
    expect(card(page, "large")).to_contain_text("Nothing that helps is known, so these are the domain's most often chosen items")
    expect(ranked(page, "large").first).to_contain_text("chosen")
    button = ranked(page, "large").nth(1).get_by_role("button", name="Did this")
    title = (button.get_attribute("aria-label") or "").removeprefix("Did this: ")
    button.click()
    expect(had(page, "large")).to_have_text([title])
    expect(badge(page, "large")).to_have_text("history")
    expect(page.locator(".ranked .name").get_by_text(title, exact=True)).to_have_count(0)
    expect(ranked(page, "large")).to_have_count(10)
    expect(ranked(page, "large").nth(1).get_by_role("button")).to_be_focused()
    expect(page.get_by_role("status")).to_contain_text(f"{title} is told.")


def test_a_key_is_asked_for_and_kept(visitor: Visitor, chained: Any) -> None:
    with serving(Settings([chained.path], api_key=KEY, watch=0), None) as where:
        visit = visitor(where)
        page = visit.open("domain=small&user=anyone")
        field = page.get_by_label("The service's key")
        expect(field).to_be_focused()
        field.fill("wrong")
        field.press("Enter")
        expect(page.get_by_text("The service did not take the key it got.")).to_be_visible()
        page.get_by_label("The service's key").fill(KEY)
        page.get_by_role("button", name="Use this key").click()
        expect(ranked(page, "small")).to_have_count(10)
        expect(field).to_be_hidden()
        page.reload()
        expect(ranked(page, "small")).to_have_count(10)
        expect(page.get_by_text("This service keeps no live histories")).to_be_visible()
        expect(page.get_by_role("button", name="Did this")).to_have_count(0)
        assert KEY not in page.content() + page.url
        visit.forgive("401")


def test_the_keyboard_alone_reaches_results_and_tells_events(visit: Visit) -> None:
    page = visit.open()
    expect(page.get_by_role("heading", name="Whom shall we recommend to?")).to_be_visible()

    def tab_to(wanted: Locator) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if wanted.evaluate_all("(nodes) => nodes.includes(document.activeElement)"):
                return
        raise AssertionError(f"no way to {wanted}")

    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the results")).to_be_focused()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.keyboard.press("Enter")
    expect(page.get_by_role("region", name="Results")).to_be_focused()
    page.reload()
    tab_to(page.get_by_role("combobox", name="User"))
    page.keyboard.type("u 17/'ü")
    page.keyboard.press("Enter")
    expect(ranked(page, "large").first).to_be_visible()
    tab_to(page.get_by_role("radio", name="All side by side"))
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("article")).to_have_count(1)
    tab_to(ranked(page, "large").get_by_role("button", name="Did this"))
    title = page.evaluate("document.activeElement.getAttribute('aria-label')").removeprefix("Did this: ")
    page.keyboard.press("Enter")
    expect(had(page, "large").first).to_have_text(title)
    expect(ranked(page, "large").first.get_by_role("button")).to_be_focused()


@pytest.mark.parametrize("state", ["", "user=nobody", f"domain=large&user={USER}", "by=history&in=large&item=i1&in=small&item=" + "x" * 90])
def test_on_a_phone_nothing_lies_outside(visitor: Visitor, state: str) -> None:
    page = visitor(viewport={"width": 360, "height": 740}).open(state)
    expect(page.locator("#results[aria-busy=false] > *").first).to_be_visible()
    page.get_by_text("How to read this").click()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    beyond = (
        "[...document.querySelectorAll('main *')].filter((n) => n.getClientRects().length && n.getBoundingClientRect().right > innerWidth)"
    )
    assert page.evaluate(f"{beyond}.map((n) => n.outerHTML)") == []


OUTSIDE = """() => [...document.querySelectorAll("main *")]
  .filter((node) => node.checkVisibility() && node.getBoundingClientRect().right > innerWidth)
  .map((node) => node.outerHTML)"""
CONTRASTS = """() => {
  const light = (rgb) => rgb.map((v) => v / 255).map((v) => (v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4));
  const of = ([r, g, b]) => .2126 * r + .7152 * g + .0722 * b;
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const [r, g, b, alpha = 1] = numbers(getComputedStyle(node).backgroundColor);
      if (alpha === 1) return [r, g, b];
    }
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  for (let node; (node = texts.nextNode()); ) {
    const inside = node.parentElement;
    if (!node.data.trim() || !inside.checkVisibility() || inside.closest(".unseen, .skip, option")) continue;
    const [a, b] = [numbers(getComputedStyle(inside).color), ground(inside)].map((rgb) => of(light(rgb.slice(0, 3)))).sort((x, y) => y - x);
    found.push([(a + .05) / (b + .05), node.data]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_its_ground(visitor: Visitor, scheme: str) -> None:
    page = visitor(color_scheme=scheme, reduced_motion="reduce").open(f"user={USER}&k=5")
    expect(ranked(page, "small")).to_have_count(5)
    page.get_by_text("How to read this").click()
    ranked(page, "large").first.get_by_role("button").click()
    expect(page.locator(".chips .new")).to_be_visible()
    page.get_by_role("combobox", name="User").click()
    page.get_by_role("combobox", name="User").press("ArrowDown")
    expect(chosen(page)).to_be_visible()
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 50
    assert [one for one in contrasts if one[0] < 4.5] == []


def test_markup_in_ids_titles_and_errors_is_text(visit: Visit) -> None:
    page = visit.open("domain=large")
    field = page.get_by_role("combobox", name="User")
    field.press_sequentially(NASTY)
    field.press("Enter")
    expect(badge(page, "large")).to_have_text("popular")
    assert page.title().startswith(NASTY)
    ranked(page, "large").first.get_by_role("button").click()
    expect(had(page, "large")).to_have_count(1)
    item = {"item": NASTY, "title": "<b>bold</b>", "score": None, "why": [{"item": "<script>alert(1)</script>", "cosine": 0.5}]}
    page.route("**/recommend", answer_with({"items": [item], "bundle": "<i>@1", "unknown": ["<u>who</u>"]}))
    page.route("**/v1/history?*", answer_with({"domains": {"large": [{"item": "<s>", "title": None}]}}))
    page.reload()
    expect(ranked(page, "large").locator(".name")).to_have_text(f"<b>bold</b>{NASTY}")
    expect(ranked(page, "large")).to_contain_text("because of <script>alert(1)</script>\u00a00.50")
    expect(ranked(page, "large")).to_contain_text("no score")
    expect(card(page, "large")).to_contain_text("<i>@1")
    expect(card(page, "large")).to_contain_text("Not known to this bundle: <u>who</u>")
    expect(had(page, "large")).to_have_text("<s>")
    page = visit.open("by=history&in=large&item=%3Cb%3Ei%3C%2Fb%3E&domain=%3Cb%3Enone%3C%2Fb%3E")
    page.unroute_all()
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("no domain '<b>none</b>'")
    expect(page.get_by_role("list", name="History, oldest first")).to_contain_text("large: <b>i</b>")
    assert page.locator("main img, main script, main b, main u, main s").count() == 0
    visit.forgive("404")


def test_faults_are_told_in_words(visit: Visit, store: MayBeAway, monkeypatch: pytest.MonkeyPatch) -> None:
    page = visit.open(f"domain=lage&user={USER}")
    expect(page.get_by_role("alert")).to_contain_text("no domain 'lage'")
    expect(page.get_by_role("alert")).to_contain_text("Expected: one of ('large', 'medium', 'small')")
    expect(page.get_by_role("alert")).to_contain_text("What to do: did you mean 'large'?")
    visit.forgive("404")

    page = visit.open(f"domain=large&user={USER}")
    expect(ranked(page, "large")).to_have_count(10)
    rating = {"error": {"came": "an event without a label", "expected": "its rating, as in the data", "do": 'send "label"', "field": None}}
    page.route("**/v1/events", lambda route: route.fulfill(status=422, json=rating))
    ranked(page, "large").first.get_by_role("button").click()
    expect(page.get_by_role("alert")).to_contain_text("an event without a label")
    expect(page.get_by_role("alert")).to_contain_text("Expected: its rating, as in the data")
    expect(ranked(page, "large")).to_have_count(10)
    visit.forgive("422")

    with monkeypatch.context() as patch:
        patch.setattr(store, "away", True)
        page.reload()
        expect(card(page, "large")).to_contain_text("Live histories do not answer")

    page.route("**/v1/large/recommend", lambda route: route.abort())
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("no answer")
    page.unroute_all()
    page.get_by_role("button", name="Try again").click()
    expect(ranked(page, "large")).to_have_count(10)
    visit.forgive("ERR_FAILED")

    page.route("**/v1/domains", lambda route: route.fulfill(status=502, body="<html>bad gateway</html>"))
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("status 502")
    page.unroute_all()
    page.get_by_role("button", name="Try again").click()
    expect(ranked(page, "large")).to_have_count(10)
    visit.forgive("502")


def test_a_late_answer_does_not_replace_a_newer_one(visit: Visit) -> None:
    page = visit.open(f"domain=large&user={USER}")
    expect(ranked(page, "large")).to_have_count(10)
    held: list[Route] = []
    page.route("**/v1/large/recommend", lambda route: route.continue_() if held else held.append(route))
    page.get_by_label("Items", exact=True).select_option("5")
    expect(page.get_by_role("region", name="Results")).to_have_attribute("aria-busy", "true")
    expect(page.locator("#progress")).to_be_visible()
    with page.expect_event("requestfailed"):  # nobody waits for it any more
        page.get_by_label("Items", exact=True).select_option("20")
    expect(ranked(page, "large")).to_have_count(20)
    expect(page.get_by_role("region", name="Results")).to_have_attribute("aria-busy", "false")
    expect(page.locator("#progress")).to_be_hidden()


def test_the_page_needs_nothing_but_itself() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [way for way in ("innerHTML", "insertAdjacentHTML", "document.write", "eval(") if way in text] == []
    assert set(re.findall(r"https?://[^\s'\"<]+", text)) == {"http://www.w3.org/2000/svg"}


def test_the_description_is_shown_without_other_hosts(visit: Visit) -> None:
    visit.page.goto(f"{visit.address.rstrip('/')}/docs")
    expect(visit.page.get_by_role("button", name="POST /v1/{domain}/recommend", exact=False).first).to_be_visible()
