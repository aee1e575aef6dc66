"""Accounts in a real browser, on the family that ships: keys made, used, seen and revoked by an operator."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex

import pytest
from integration.browser import SOON_MS, chromium, fits_a_phone_and_is_readable, needs_chromium, opened
from integration.conftest import Stage
from integration.families import shipped
from integration.server import Server
from openai import AuthenticationError
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.slow, needs_chromium]
MARKUP = "<script>document.title = 'run'</script><b>=1+1</b>"
HELLO = {"model": "gpt-5.2-mini", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}
VIEWS = ("Keys", "Plans", "Usage", "Acts")


@pytest.fixture(scope="module")
def server(stages: Stage) -> Server:
    return stages.serve("laptop", shipped)


@pytest.fixture(scope="module")
def admin(server: Server) -> str:
    made = server.moray("keys", "create", "ops", "--scope", "admin", "--json")
    key: str = json.loads(made.stdout)[0]["key"]
    return key


@pytest.fixture(scope="module")
def faults() -> list[str]:
    """What the browser complained of."""
    return []


@pytest.fixture(scope="module")
def page(server: Server, faults: list[str]) -> Iterator[Page]:
    with chromium() as browser, opened(browser, f"{server.url}/console/accounts", faults) as page:
        yield page


@pytest.fixture
def name() -> str:
    """Of a key that nothing else is called."""
    return f"key of {token_hex(4)}"


@pytest.fixture
def ready(page: Page, admin: str, faults: list[str]) -> Page:
    """Open, at its keys."""
    page.set_viewport_size({"width": 1400, "height": 900})
    page.goto(page.url.partition("#")[0])
    page.reload()
    enter(page, admin)
    expect(page.locator("#keys-rows table")).to_be_visible(timeout=SOON_MS)
    faults.clear()
    return page


def enter(page: Page, key: str) -> None:
    page.get_by_label("Admin key").fill(key)
    page.get_by_role("button", name="Open").click()


def make(page: Page, name: str) -> str:
    """The secret, as the page shows it once."""
    page.get_by_role("button", name="New key").click()
    page.locator("#making").get_by_label("Name").fill(name)
    page.locator("#making").get_by_label("Plan").select_option("developer")
    page.get_by_role("button", name="Make it").click()
    shown = page.locator("#secret-value")
    expect(shown).to_be_visible(timeout=SOON_MS)
    secret = shown.input_value()
    page.get_by_role("button", name="Done").click()
    expect(shown).to_have_value("")  # it is not shown again
    return secret


def find(page: Page, words: str) -> None:
    page.get_by_role("searchbox", name="Search").fill(words)
    page.get_by_role("button", name="Find").click()
    expect(page.locator("#keys-rows tbody tr")).to_have_count(1, timeout=SOON_MS)


def test_a_key_that_is_unknown_or_no_admins_is_told_and_shows_nothing(page: Page, server: Server) -> None:
    for key, why in (("sk-moray-wrong", "the API key is unknown"), (server.key, "admin")):
        enter(page, key)
        expect(page.get_by_role("alert")).to_contain_text(why, timeout=SOON_MS)
        expect(page.locator("#link")).to_have_text("Not open")
        assert page.locator("[data-view]:visible").count() == 0


def test_an_operator_makes_a_key_sees_its_use_and_revokes_it_and_it_is_refused_at_once(
    ready: Page, name: str, server: Server, faults: list[str], tmp_path: Path
) -> None:
    secret = make(ready, name)
    client = server.client(secret)
    used = client.chat.completions.create(**HELLO).usage  # type: ignore[call-overload]
    find(ready, name.upper())
    ready.get_by_role("button", name=f"Usage: {name}").click()
    row = ready.locator("#usage-rows tbody tr")
    expect(row.locator("[data-name='tokens out']")).to_have_text(str(used.completion_tokens), timeout=SOON_MS)
    expect(row.locator("[data-name='requests']")).to_have_text("1")
    with ready.expect_download() as download:
        ready.get_by_role("button", name="Download CSV").click()
    download.value.save_as(tmp_path / "usage.csv")
    (told,) = csv.DictReader((tmp_path / "usage.csv").read_text(encoding="utf-8").splitlines())
    assert (told["model"], int(told["output_tokens"])) == (HELLO["model"], used.completion_tokens)
    ready.get_by_role("link", name="Keys").click()
    find(ready, name)
    ready.get_by_role("button", name=f"Revoke: {name}").click()
    ready.locator("#ending").get_by_role("button", name="Revoke").click()
    expect(ready.locator("#keys-rows .badge")).to_have_text("revoked", timeout=SOON_MS)
    with pytest.raises(AuthenticationError):
        client.chat.completions.create(**HELLO)  # type: ignore[call-overload]
    ready.get_by_role("link", name="Acts").click()
    newest = ready.locator("#acts-rows tbody tr").first
    expect(newest.locator("[data-name='Act']")).to_have_text("keys.revoke", timeout=SOON_MS)
    assert faults == []


def test_a_rotated_key_has_another_secret_and_that_of_before_is_refused(ready: Page, name: str, server: Server) -> None:
    before = make(ready, name)
    find(ready, name)
    ready.get_by_role("button", name=f"Rotate: {name}").click()
    ready.locator("#turning").get_by_role("button", name="Rotate").click()
    expect(ready.locator("#secret-value")).to_be_visible(timeout=SOON_MS)
    after = ready.locator("#secret-value").input_value()
    assert (server.http(after).get("/v1/models").status_code, server.http(before).get("/v1/models").status_code) == (
        200,
        401,
    )


def test_a_name_with_markup_is_text(ready: Page, name: str, faults: list[str]) -> None:
    make(ready, MARKUP + name)
    find(ready, name)
    expect(ready.locator("#keys-rows tbody b")).to_have_text(MARKUP + name)
    assert ready.locator("#keys-rows script").count() == 0
    assert ready.title() == "Moray keys"
    assert faults == []


def test_what_a_project_has_taken_of_its_plans_is_shown(ready: Page, name: str) -> None:
    make(ready, name)
    ready.get_by_role("link", name="Plans").click()
    ready.locator("#projects-list button", has_text="default/default").click()
    limit = ready.locator("#taken [data-limit=requests_per_minute]")
    expect(limit).to_contain_text("of 6,000 taken", timeout=SOON_MS)
    assert ready.locator("#plans-list article").count() == 6


def test_the_key_is_kept_nowhere_and_gone_when_the_page_is_locked(ready: Page, admin: str) -> None:
    assert ready.evaluate("[localStorage.length, sessionStorage.length, document.cookie.length]") == [0, 0, 0]
    assert admin not in ready.url + ready.content()
    ready.get_by_role("button", name="Lock").click()
    expect(ready.get_by_label("Admin key")).to_have_value("")
    assert ready.locator("#keys-rows *").count() == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_part_fits_a_phone_and_is_readable_in_both_themes(ready: Page, theme: str) -> None:
    for view in VIEWS:
        ready.get_by_role("link", name=view).click()
        expect(ready.locator("[data-view]:visible [role=status]").first).not_to_have_text("Loading", timeout=SOON_MS)
        fits_a_phone_and_is_readable(ready, theme)
