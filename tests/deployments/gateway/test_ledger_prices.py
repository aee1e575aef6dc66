"""What the ledger charges: the tier asked, the price of names that leave the choice to us, seconds of video."""

import contextlib
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sdk import USAGE, Replies, Served, served
from shell import VIDEO

from cluster.family import Family, Video
from cluster.request import Served as By
from cluster.usage import chat_gpu_s, price_of, video_nusd
from deployments.gateway.asked import Asked, Place
from deployments.stores.usage import USAGE_FILE

AUTO = {
    "names": ["any"],
    "default": "turbo",
    "long": "turbo",
    "long_prompt_tokens": 1024,
    "price": {"input_usd_per_mtok": 5, "output_usd_per_mtok": 7},
}
DEARER = {"input_usd_per_mtok": 10, "output_usd_per_mtok": 20}
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 20}


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Served]:
    """mini at 1 and 2 USD per million tokens, turbo at 10 and 20, and `any` at 5 and 7."""
    async with served(tmp_path, Replies("Hello")) as here:
        given = here.gateway._family.model_dump()
        given["tiers"]["turbo"]["price"] = DEARER
        here.gateway._follow(Family.model_validate(given | {"auto": AUTO}))
        yield here


def ledger(here: Served) -> list[dict[str, Any]]:
    with contextlib.closing(sqlite3.connect(here.folder / USAGE_FILE)) as file:
        file.row_factory = sqlite3.Row
        return [dict(row) for row in file.execute("SELECT * FROM usage_events ORDER BY seq")]


def nusd(input_usd: float, output_usd: float) -> int:
    return round((USAGE.prompt_tokens * input_usd + USAGE.completion_tokens * output_usd) * 1000)


async def test_a_name_that_leaves_the_choice_to_us_has_its_own_price_and_a_tier_its_own(here: Served) -> None:
    for model in ("any", "turbo", "mini"):
        await here.client.chat.completions.create(model=model, **HELLO)
    found = [(row["model"], row["tier_served"], row["price_nusd"]) for row in ledger(here)]
    assert found == [("any", "turbo", nusd(5, 7)), ("turbo", "turbo", nusd(10, 20)), ("mini", "mini", nusd(1, 2))]


async def test_names_without_a_price_of_their_own_are_charged_as_the_tier_that_was_chosen(here: Served) -> None:
    family = here.gateway._family
    unpriced = family.model_copy(update={"auto": family.auto.model_copy(update={"price": None})})
    here.gateway._follow(unpriced)
    await here.client.chat.completions.create(model="any", **HELLO)
    assert ledger(here)[0]["price_nusd"] == nusd(10, 20)
    assert price_of(unpriced, "any", "turbo") == unpriced.tiers["turbo"].price


async def test_an_answer_of_another_tier_is_charged_as_asked_and_costs_where_it_was_made(
    here: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = here.gateway._courses.desk.place

    async def spilled(asked: Asked) -> Place:
        by = By(tier="turbo", replica="turbo-1", queued_s=0.0, spilled="mini saturated")
        placed: Place = await place(asked)
        return replace(placed, served=by)

    monkeypatch.setattr(here.gateway._courses.desk, "place", spilled)
    await here.client.chat.completions.create(model="mini", **HELLO)
    (row,) = ledger(here)
    assert (row["tier_asked"], row["tier_served"], row["price_nusd"]) == ("mini", "turbo", nusd(1, 2))
    fresh = USAGE.prompt_tokens - USAGE.cached_tokens
    assert row["gpu_s"] == pytest.approx(chat_gpu_s(here.gateway._family, "turbo", fresh, USAGE.completion_tokens))


def test_a_second_of_video_has_one_price() -> None:
    assert video_nusd(_video(0.1), 3) == 300_000_000
    assert video_nusd(_video(0.00000001), 1) == 10, "billionths of a dollar, whole"


def _video(usd_per_second: float) -> Video:
    return Video.model_validate(VIDEO | {"price": {"usd_per_second": usd_per_second}})
