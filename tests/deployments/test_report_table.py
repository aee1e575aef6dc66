import io
import json
import math

import numpy as np
from rehearsals import figures, rehearsal
from rich.console import Console

from deployments.report_table import Rehearsal, as_dict, tables


def shown(*rehearsals: Rehearsal, width: int = 120) -> str:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as said:
        console.print(tables(rehearsals))
    return said.get()


def rows(text: str) -> dict[str, list[str]]:
    """The cells of each row behind its label; cells are two spaces apart at least."""
    lines = [line.strip().split("  ") for line in text.splitlines()]
    return {label: [cell.strip() for cell in cells if cell.strip()] for label, *cells in lines}


def test_json_has_null_where_there_is_no_number() -> None:
    found = as_dict(rehearsal(attainment=math.nan, rejected={}))
    assert found["attainment"] is None
    assert json.loads(json.dumps(found, allow_nan=False))["requests"] == 1000
    assert found["wall_s"] == 0.5
    assert found["requests_per_s"] == 2000.0


def test_a_run_of_no_time_has_no_pace() -> None:
    one = rehearsal()
    timeless = Rehearsal(name=one.name, conditions=one.conditions, report=one.report, wall_s=0.0)
    assert as_dict(timeless)["requests_per_s"] is None


def test_every_figure_stands_with_its_unit_in_the_whole_and_by_tier() -> None:
    found = rows(shown(rehearsal(tiers={"ultra": figures(requests=0, gpu_hours=0.0), "pro": figures(requests=900)})))
    assert found["requests"] == ["1,000", "900"]  # ultra was neither asked nor held
    assert found["rejected: overloaded"] == ["8", "8"]
    assert found["failed: node lost"] == ["2", "2"]
    assert found["TTFT and TPOT kept, %"] == ["98.75", "98.75"]
    assert found["TTFT p99, s"] == ["1.800", "1.800"]
    assert found["times the floor"] == ["1.50", "1.50"]
    assert found["value served in time, USD"] == ["1,234.50", "1,234.50"]
    assert "video jobs" not in found
    assert "simulated: no GPU was used" in found


def test_videos_are_shown_where_there_are_any() -> None:
    found = rows(shown(rehearsal(jobs=12, jobs_in_time=11, rejected={}, failed={})))
    assert found["video jobs"] == ["12"]
    assert found["video jobs in time"] == ["11"]
    assert found["rejected"] == found["failed"] == ["0"]


def test_a_figure_of_nothing_is_a_dash() -> None:
    found = rows(shown(rehearsal(ttft_p99_s=math.nan, gpu_hours_floor=0.0)))
    assert found["TTFT p99, s"] == found["times the floor"] == ["-"]


def test_policies_are_columns_with_the_reasons_of_all() -> None:
    first = rehearsal("moray", tiers={"pro": figures(), "mini": figures(requests=0)}, rejected={"overloaded": 8})
    second = rehearsal("ray", tiers={"pro": figures(attainment=0.5), "mini": figures()}, rejected={"too_late": 5})
    found = rows(shown(first, second))
    assert found["rejected: overloaded"] == ["8", "0"]
    assert found["rejected: too late"] == ["0", "5"]
    assert found["pro: TTFT and TPOT kept, %"] == ["98.75", "50.00"]
    assert "mini: GPU-hours" not in found  # nobody asked it


def test_conditions_are_those_that_all_share() -> None:
    given = {"seed": 3, "traces": ["a", "b"], "cold_start_p50_s": {"pro": 120.0}, "settings": {}, "start_s": None}
    first = rehearsal("moray", conditions=given | {"router": "moray"})
    second = rehearsal("ray", conditions=given | {"router": "p2c"})
    alone, together = rows(shown(first)), rows(shown(first, second))
    assert alone["router"] == ["moray"]
    assert "router" not in together
    assert together["traces"] == ["a, b"]
    assert together["cold start p50 s"] == ["pro 120"]
    assert together["settings"] == together["start s"] == ["-"]


def test_six_policies_fit_beside_each_other_without_losing_a_digit() -> None:
    names = ("moray", "ray/target_ongoing_requests=20", "kpa", "dynamo/p2c", "static", "clairvoyant")
    text = shown(*(rehearsal(name, requests=12_345_678) for name in names))
    assert rows(text)["requests"] == ["12,345,678"] * 6
    assert max(len(line) for line in text.splitlines()) <= 120


def test_numbers_of_numpy_are_plain() -> None:
    assert json.dumps(as_dict(rehearsal(gpu_hours=float(np.float64(1.5)))))
