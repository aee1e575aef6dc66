"""The page of a load, from figures and in a real browser: it asks nobody for anything, and reads in light and dark."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

import pytest

from deployments.load.answer import Answer
from deployments.load.options import Promise
from deployments.load.page import page
from deployments.load.plots import Frame, draw
from deployments.load.report import report

CHROMIUM = "/usr/bin/chromium"
SCENARIO = {"name": "a <b> & $x_1$", "about": "Hostile & <script>alert(1)</script>."}


def answer(number: int) -> Answer:
    """Each fifth is refused, each seventh breaks; from second 60 on all are slow."""
    due_s = number / 4
    one = Answer(
        model=("gpt-5.2-turbo", "<i>$m$")[number % 2],
        tenant=("gold", "free")[number % 3 == 0],
        due_s=due_s,
        sent_s=due_s + 0.002 * (number % 3),
    )
    one.ended_s = one.sent_s
    if number % 5 == 0:
        one.refused = ("overloaded", "not_in_plan")[number % 2]
        return one
    slow = 0.2 + number % 11 / 40 + (9.0 if 60 < due_s < 90 else 0.0)
    one.first_s, one.last_s, one.output_tokens = due_s + slow, due_s + slow + 2, 60
    one.ended_s = one.last_s
    one.failure = "cut off" if number % 7 == 0 else None
    return one


def found(answers: list[Answer]) -> dict[str, Any]:
    told = report(answers, {"": Promise(ttft_s=1, tpot_ms=50)}, 140.0, warm_up_s=20.0)
    action = {"name": "lose-node", "do": "Kill it.", "due_s": 60, "ran": False, "began_s": 60.0, "exit_code": None}
    return told | {"conditions": {"scenario": SCENARIO, "seed": 0}, "actions": [action], "interrupted": False}


BUSY = page(found([answer(number) for number in range(480)]))
EMPTY = page(found([]))


class Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href"):
                self.links.append(value or "")


def seen(text: str) -> Seen:
    parser = Seen()
    parser.feed(text)
    return parser


@pytest.mark.parametrize("text", [BUSY, EMPTY], ids=["busy", "empty"])
def test_the_page_needs_no_other_file_and_runs_nothing(text: str) -> None:
    told = seen(text)
    assert "script" not in told.tags
    assert {link for link in told.links if not link.startswith("#")} <= {"data:,"}
    assert "url(" not in re.sub(r"url\(#", "", text)


def test_what_servers_and_files_named_is_text() -> None:
    assert "<script>" not in BUSY
    assert "&lt;i&gt;$m$" in BUSY


def test_no_two_pictures_share_an_id() -> None:
    ids = seen(BUSY).ids
    assert len(ids) == len(set(ids))


def test_each_model_and_tenant_has_pictures_with_words_for_them() -> None:
    assert seen(BUSY).tags.count("svg") == BUSY.count('role="img"') == 6 + 4 * 5
    for word in ("model gpt-5.2-turbo", "tenant gold", "overloaded", "cut off", "warm-up, not counted", "lose-node"):
        assert word in BUSY


def test_all_colours_are_the_pages() -> None:
    drawn = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", BUSY))
    assert drawn == set()


def test_scales_of_decades_are_told_in_plain_numbers() -> None:
    frame = Frame(begin_s=[0.0, 1.0], bin_s=1.0, warm_up_s=0.0, actions={})
    picture = draw({"p50": [0.01, 20.0]}, "seconds", frame, "wide", log=True)
    assert ">0.1</text>" in picture
    assert "$" not in picture


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(CHROMIUM) is None, reason=f"{CHROMIUM} is missing: install Debian's chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1360])
def test_a_browser_shows_it_without_complaint(scheme: Literal["light", "dark"], width: int, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    (tmp_path / "load.html").write_text(BUSY, encoding="utf-8")
    complaints: list[str] = []
    wanted: list[str] = []
    with playwright.sync_playwright() as drivers:
        browser = drivers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        shown = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
        shown.on("console", lambda message: complaints.append(message.text))
        shown.on("pageerror", lambda error: complaints.append(str(error)))
        shown.on("request", lambda asked: wanted.append(asked.url.partition(":")[0]))
        shown.goto((tmp_path / "load.html").as_uri())
        paper = shown.evaluate("getComputedStyle(document.body).backgroundColor")
        line = shown.evaluate("getComputedStyle(document.querySelector('svg path[style*=\"--series-0\"]')).stroke")
        wide = shown.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        browser.close()
    assert complaints == []
    assert set(wanted) <= {"file", "data"}
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
    assert line == {"light": "rgb(0, 96, 168)", "dark": "rgb(98, 181, 255)"}[scheme]
    assert wide == 0, "nothing is cut off at the right"
