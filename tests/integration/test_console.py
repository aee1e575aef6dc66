"""The console in a real browser, on the family of four simulated nodes: looked at while it is idle, busy and gone."""

import json
import re
from collections.abc import Iterator

import pytest
from integration.browser import SOON_MS, chromium, fits_a_phone_and_is_readable, needs_chromium, opened
from integration.conftest import Stage
from integration.families import spread
from integration.server import Server
from integration.talk import Stream
from playwright.sync_api import Browser, Page, expect

pytestmark = [pytest.mark.slow, needs_chromium]
NODES = 4
CROWD, TOKENS, JOBS = 16, 1500, 6
SSE = {"content-type": "text/event-stream"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(stages: Stage) -> Server:
    return stages.serve("spread", spread, NODES)


@pytest.fixture(scope="module")
def faults() -> list[str]:
    """What the browser complained of."""
    return []


@pytest.fixture(scope="module")
def page(browser: Browser, server: Server, faults: list[str]) -> Iterator[Page]:
    with opened(browser, f"{server.url}/console", faults) as page:
        yield page


def test_the_page_shows_who_runs_where_without_a_complaint(page: Page, faults: list[str]) -> None:
    expect(page.locator("#link")).to_have_text("Live", timeout=SOON_MS)
    assert page.locator("#tier-list article").evaluate_all("all => all.map((one) => one.dataset.tier)") == [
        "ultra",
        "pro",
        "turbo",
        "video",
    ]
    expect(page.locator("#cell-list article")).to_have_count(NODES, timeout=SOON_MS)
    for owner, replicas in {"ultra": 1, "pro": 2, "turbo": 2}.items():
        expect(page.locator(f"#cell-list li[data-owner={owner}]")).to_have_count(replicas, timeout=SOON_MS)
    assert page.locator("#cell-list rect").count() == NODES * 8
    expect(page.locator("#notice")).to_be_hidden(timeout=SOON_MS)
    assert faults == []


def test_a_chat_streams_and_a_wrong_key_is_told(page: Page, server: Server, faults: list[str]) -> None:
    page.get_by_label("Model").select_option("turbo")
    page.get_by_label("API key").fill("sk-moray-wrong")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#chat-answer")).to_contain_text("the API key is unknown", timeout=SOON_MS)
    assert len(faults) == 1, "the browser logs a 401 by itself"
    faults.clear()
    page.get_by_label("API key").fill(server.key)
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#chat-note")).to_contain_text("First text after", timeout=SOON_MS)
    assert page.locator("#chat-answer").evaluate("(answer) => answer.childNodes.length") > 10, "one piece is no stream"
    page.route("**/v1/chat/completions", lambda route: None)  # never answered
    page.get_by_role("button", name="Send").click()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#chat-note")).to_have_text("Stopped.")
    page.unroute("**/v1/chat/completions")
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie.length]") == [0, 0, 0]
    assert faults == []


def test_a_crowd_is_seen_and_so_is_a_decision_with_its_reason(page: Page, server: Server) -> None:
    job = {"model": "sora-2", "prompt": "a wave", "seconds": "1", "size": "64x64"}
    for _ in range(JOBS):  # the policy may look between any two of them
        server.http().post("/v1/videos", json=job).raise_for_status()
    crowd = [Stream(server, "turbo", TOKENS, seed=seed) for seed in range(CROWD)]
    running = page.locator("[data-tier=turbo] dt", has_text="Running").locator("+ dd")
    expect(running).not_to_have_text("0 / 0", timeout=SOON_MS)
    grows = page.locator("#decision-list li", has_text="video grows from").first
    expect(grows).to_contain_text(re.compile(rf"[1-{JOBS}] jobs, \d+ GPU-s left"), timeout=SOON_MS)
    for stream in crowd:
        stream.hang_up()
        stream.ended()


def test_lent_gpus_groups_that_wait_and_a_silent_control_loop_are_marked(browser: Browser, server: Server) -> None:
    """What no laptop shows when asked: a real snapshot, changed on its way to the page."""
    page = browser.new_page()
    state = server.http().get("/console/state").raise_for_status().json()
    node = next(node for cell in state["cells"] for node in cell["nodes"] if node["holdings"])
    owner = node["holdings"][0]["owner"]
    node["lent"] = [{"tier": owner, "gpus": 1}]
    state |= {"awaiting": [{"tier": "ultra", "ranks": 8}], "control": {"picture_age_s": 42, "heard_age_s": 42}}
    page.route("**/console/events", lambda route: route.fulfill(body=f"data: {json.dumps(state)}\n\n", headers=SSE))
    page.goto(f"{server.url}/console")
    expect(page.get_by_text(f"video lends 1 GPU to {owner}")).to_be_visible(timeout=SOON_MS)
    expect(page.get_by_text("on lent GPUs").first).to_be_visible()
    expect(page.get_by_text("a group of ultra waits for 8 GPUs")).to_be_visible()
    expect(page.locator("#notice")).to_contain_text("The control loop is away")
    expect(page.locator("#notice")).to_contain_text("42 s ago")
    page.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_phone_and_is_readable_in_both_themes(page: Page, theme: str) -> None:
    fits_a_phone_and_is_readable(page, theme)


def test_every_control_has_a_name_and_is_reached_by_keyboard(page: Page) -> None:
    page.reload()
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert [one for one in reached if "chat-" in one][:4] == ["chat-key", "chat-model", "chat-message", "chat-send"]
    assert reached[0] == "Skip to the tiers"
    assert page.locator("main, header, footer, nav").count() == 4


def test_a_gateway_that_stops_is_not_held_up_and_the_page_says_that_it_is_gone(page: Page, stages: Stage) -> None:
    stages.clear()
    expect(page.locator("#link")).to_contain_text("Connection lost; trying again", timeout=SOON_MS)
    expect(page.locator("#tier-list article").first).to_be_visible()
