"""The studio in a real browser, on the family that ships: clips made, watched, marked, edited and kept."""

import json
from collections.abc import Iterator

import av
import pytest
from integration.browser import SOON_MS, chromium, fits_a_phone_and_is_readable, needs_chromium, opened
from integration.conftest import Stage
from integration.families import shipped
from integration.server import Server
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.slow, needs_chromium]
RENDERED_MS = 120_000


@pytest.fixture(scope="module")
def server(stages: Stage) -> Server:
    return stages.serve("laptop", shipped)


@pytest.fixture(scope="module")
def faults() -> list[str]:
    """What the browser complained of."""
    return []


@pytest.fixture(scope="module")
def page(server: Server, faults: list[str]) -> Iterator[Page]:
    with chromium() as browser, opened(browser, f"{server.url}/console/studio", faults) as page:
        yield page


@pytest.fixture(scope="module")
def ready(page: Page, server: Server, faults: list[str]) -> Page:
    """Open, and with a finished clip on its frame."""
    page.get_by_label("API key").fill(server.key)
    page.get_by_role("button", name="Open").click()
    expect(page.locator("#link")).to_have_text("Open", timeout=SOON_MS)
    faults.clear()
    page.locator("#make").get_by_label("Prompt").fill("a red circle moves left")
    page.locator("#make").get_by_label("Size").select_option("96x64")
    page.locator("#make").get_by_label("Seconds").select_option("2")
    page.get_by_role("button", name="Make").click()
    expect(page.locator("#state")).to_have_text("Ready", timeout=RENDERED_MS)
    expect(page.locator("#controls")).to_be_visible(timeout=SOON_MS)
    return page


def region(page: Page) -> list[str]:
    return [page.locator(f"#{name}").input_value() for name in ("x", "y", "width", "height")]


def test_without_a_key_nothing_can_be_made_and_a_wrong_one_is_told(page: Page) -> None:
    expect(page.get_by_role("button", name="Make")).to_be_disabled()
    page.get_by_label("API key").fill("sk-moray-wrong")
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_role("alert")).to_contain_text("the API key is unknown", timeout=SOON_MS)


def test_a_clip_is_made_and_plays(ready: Page, faults: list[str]) -> None:
    assert ready.evaluate("[video.videoWidth, video.videoHeight, video.duration]") == [96, 64, 2]
    ready.get_by_role("button", name="Play").click()
    expect(ready.locator("#time")).not_to_contain_text("0.00 /", timeout=SOON_MS)
    ready.get_by_role("button", name="Pause").click()
    expect(ready.locator("#about")).to_contain_text("16 frames at 8/s")
    assert ready.evaluate("[localStorage.length, sessionStorage.length, document.cookie.length]") == [0, 0, 0]
    assert faults == []


def test_a_region_is_marked_by_mouse_and_by_keys_and_only_it_is_edited(ready: Page, faults: list[str]) -> None:
    frame = ready.locator("#mark").bounding_box()
    assert frame is not None
    across, down = frame["width"] / 96, frame["height"] / 64
    ready.locator("#mark").scroll_into_view_if_needed()
    ready.mouse.move(frame["x"] + 48 * across, frame["y"] + 48 * down)
    ready.mouse.down()
    ready.mouse.move(frame["x"] + 16 * across, frame["y"] + 16 * down, steps=3)
    ready.mouse.up()
    assert region(ready) == ["16", "16", "32", "32"]
    expect(ready.get_by_label("Edit a part")).to_be_checked()
    ready.locator("#mark").focus()
    ready.keyboard.press("ArrowRight")
    ready.keyboard.press("Shift+ArrowUp")
    assert region(ready) == ["19", "16", "32", "29"]
    ready.get_by_label("To", exact=True).fill("1")
    ready.locator("#make").get_by_label("Prompt").fill("a blue circle")
    ready.get_by_role("button", name="Make").click()
    child = ready.locator("#tree li li > button[aria-current]", has_text="a blue circle")
    expect(child).to_contain_text("completed", timeout=RENDERED_MS)
    expect(ready.locator("#about")).to_contain_text("region 32x29 at 19, 16")
    expect(ready.locator("#about")).to_contain_text("0 to 1 s")
    assert faults == []


def test_a_clip_is_downloaded_whole(ready: Page) -> None:
    with ready.expect_download() as download:
        ready.get_by_role("link", name="Download").click()
    with av.open(str(download.value.path()), mode="r") as container:
        assert sum(1 for _ in container.decode(video=0)) == 16


def test_any_version_can_be_gone_back_to_and_deleted(ready: Page) -> None:
    parent = ready.locator("#tree > li > button").first
    parent.click()
    expect(parent).to_have_attribute("aria-current", "true")
    expect(ready.locator("#about")).to_contain_text("a red circle moves left")
    child = ready.locator("#tree li li > button").first
    name = child.get_attribute("data-id")
    child.click()
    ready.once("dialog", lambda dialog: dialog.accept())
    ready.get_by_role("button", name="Delete").click()
    expect(ready.locator(f"[data-id={name}]")).to_have_count(0, timeout=SOON_MS)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_phone_and_is_readable_in_both_themes(ready: Page, theme: str) -> None:
    ready.locator("#tree button").first.click()
    expect(ready.locator("#controls")).to_be_visible(timeout=SOON_MS)
    ready.get_by_label("Edit a part").check()
    fits_a_phone_and_is_readable(ready, theme)


def test_why_a_clip_failed_how_one_waits_and_that_the_gateway_is_gone_are_said(ready: Page, server: Server) -> None:
    """What no laptop shows when asked: a real list, changed on its way to the page."""
    told = server.http().get("/v1/videos").raise_for_status().json()
    job = told["data"][0]
    job |= {"status": "queued", "progress": 0}
    job["moray"] |= {"stage": "queued", "queue_position": 3}
    ready.route("**/v1/videos?*", lambda route: route.fulfill(body=json.dumps(told)))
    ready.get_by_role("button", name="Open").click()
    ready.locator(f"[data-id={job['id']}]").click()
    expect(ready.locator("#state")).to_have_text("Queued", timeout=SOON_MS)
    expect(ready.locator("#left")).to_contain_text("2 before it")
    job |= {"status": "failed", "error": {"code": "engine_failed", "message": "engine: out of memory; try again"}}
    expect(ready.get_by_role("alert")).to_have_text("engine: out of memory; try again", timeout=SOON_MS)
    ready.unroute("**/v1/videos?*")
    ready.route("**/v1/videos?*", lambda route: route.abort())
    ready.get_by_role("button", name="Open").click()
    expect(ready.locator("#link")).to_contain_text("The gateway does not answer", timeout=SOON_MS)
    ready.unroute("**/v1/videos?*")
    expect(ready.locator("#link")).to_have_text("Open", timeout=SOON_MS)


@pytest.fixture(scope="module")
def board(ready: Page, faults: list[str]) -> Page:
    """A storyboard of two shots, made and joined."""
    ready.set_viewport_size({"width": 1200, "height": 900})
    ready.get_by_role("link", name="Storyboards").click()
    faults.clear()
    form = ready.locator("#board-make")
    form.get_by_label("Title").fill("Two shapes")
    for index, prompt in enumerate(("a red circle moves left", "a blue square")):
        if index:
            form.get_by_role("button", name="Add a shot").click()
        form.get_by_role("group", name=f"Shot {index + 1}").get_by_label("What is seen").fill(prompt)
    form.get_by_role("group", name="Shot 2").get_by_label("Camera").fill("zooms in and zooms out")
    form.get_by_role("button", name="Make the storyboard").click()
    expect(ready.locator("#board-state")).to_have_text("Ready", timeout=RENDERED_MS)
    return ready


def test_a_storyboard_is_made_shot_by_shot_and_its_cut_plays(board: Page, faults: list[str]) -> None:
    expect(board.locator("#shots > li")).to_have_count(2)
    expect(board.locator("#shots > li").nth(1)).to_contain_text("zooms in and zooms out at once cannot be")
    expect(board.locator("#shots canvas")).to_have_count(2, timeout=SOON_MS)
    board.get_by_role("button", name="Watch the cut").click()
    expect(board.locator("#cut")).to_have_js_property("ended", True, timeout=SOON_MS)
    assert board.evaluate("[cut.videoWidth, cut.videoHeight, cut.duration]") == [64, 64, 2]
    board.get_by_role("button", name="Watch, shot 1").click()
    expect(board.locator("#cut")).to_have_js_property("duration", 1, timeout=SOON_MS)
    with board.expect_download() as download:
        board.get_by_role("link", name="Download").click()
    with av.open(str(download.value.path()), mode="r") as container:
        assert sum(1 for _ in container.decode(video=0)) == 16
    assert faults == []


def test_one_shot_is_rendered_again_alone(board: Page, faults: list[str]) -> None:
    board.get_by_role("button", name="Render again, shot 2").click()
    again = board.get_by_role("dialog", name="Render shot 2 again")
    again.get_by_label("Prompt").fill("a green square")
    again.get_by_label("Camera").fill("")
    again.get_by_role("button", name="Render").click()
    expect(again).to_be_hidden(timeout=SOON_MS)
    expect(board.locator("#shots > li").nth(1)).to_contain_text("a green square")
    expect(board.locator("#shots > li").nth(1)).not_to_contain_text("at once cannot be")
    expect(board.locator("#board-state")).to_have_text("Ready", timeout=RENDERED_MS)
    expect(board.locator("#cut")).to_have_js_property("duration", 2, timeout=SOON_MS)
    assert faults == []


def test_an_idea_becomes_shots(board: Page, server: Server, faults: list[str]) -> None:
    before = board.locator("#board-list button").count()  # other tests' clients have boards too
    board.get_by_role("radio", name="An idea").check()
    board.get_by_label("Title").fill("An idea")
    board.get_by_label("Idea, or script").fill("A square is late.")
    board.get_by_label("Who writes the shots").select_option("gpt-5.2-mini")
    board.get_by_role("button", name="Make the storyboard").click()
    expect(board.locator("#board-list button[aria-current]")).to_contain_text("An idea", timeout=RENDERED_MS)
    expect(board.locator("#board-about")).to_contain_text("An idea")
    expect(board.locator("#shots > li").first).to_contain_text("Shot 1")
    board.once("dialog", lambda dialog: dialog.accept())
    board.get_by_role("button", name="Delete").click()
    expect(board.locator("#board-list button")).to_have_count(before, timeout=SOON_MS)
    http = server.http()
    for video in http.get("/v1/videos").raise_for_status().json()["data"]:
        if video["status"] != "completed":  # nobody waits for what a small model dreams of
            http.delete(f"/v1/videos/{video['id']}").raise_for_status()
    board.locator("#board-list button", has_text="Two shapes").click()
    assert faults == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_storyboards_fit_a_phone_and_are_readable_in_both_themes(board: Page, theme: str) -> None:
    board.get_by_role("radio", name="Shots").check()
    fits_a_phone_and_is_readable(board, theme)


def test_a_storyboard_is_deleted(board: Page) -> None:
    before = board.locator("#board-list button").count()
    board.once("dialog", lambda dialog: dialog.accept())
    board.get_by_role("button", name="Delete").click()
    expect(board.locator("#board-list button")).to_have_count(before - 1, timeout=SOON_MS)


def test_every_control_has_a_name(ready: Page) -> None:
    unnamed = """() => [...document.querySelectorAll("input, select, textarea, button, progress, svg")]
        .filter((one) => !(one.labels?.length || one.textContent.trim() || one.getAttribute("aria-label")))
        .map((one) => one.id)"""
    assert ready.evaluate(unnamed) == []
    assert ready.locator("main, header, nav").count() == 3
