"""`moray load` against the product: a scenario with tenants, tokens and videos, accounted for to the last request."""

import json
from pathlib import Path

from integration.server import Server

SCENARIO = """
name: little
about: A few requests of two tenants, and videos.
duration_s: 12
warm_up_s: 3
streams:
  - {model: turbo, rps: {0: 1, 12: 3}, prompt: {median: 40}, output: {median: 12}}
  - {model: mini, rps: {0: 1}, prompt: {median: 40}, output: {median: 12}}
videos: {per_hour: {0: 900, 6: 900, 7: 0}}
tenants: {gold: 1, free: 1}
actions: [{name: look, at_s: 5, do: Look at the console.}]
"""


def test_a_scenario_is_accounted_for_to_the_last_request(laptop: Server, tmp_path: Path) -> None:
    words = ["--scenario", str(tmp_path / "little.yaml"), "--json", "--html", str(tmp_path / "little.html")]
    (tmp_path / "little.yaml").write_text(SCENARIO, encoding="utf-8")
    for name in ("gold", "free"):
        (created,) = json.loads(laptop.moray("keys", "create", name, "--json").stdout)
        (tmp_path / name).write_text(created["key"], encoding="utf-8")
        words += ["--key", f"{name}={tmp_path / name}"]
    ran = laptop.moray("load", "--url", laptop.url, *words)
    assert ran.returncode == 0, ran.stderr
    assert "5.0 s, look: now: Look at the console." in ran.stderr
    found = json.loads(ran.stdout)
    whole = found["all"]
    assert whole["completed"] == whole["requests"] == found["planned"] - found["warm_up"]["requests"] > 10
    assert set(found["tenants"]) == {"gold", "free"}
    assert whole["tiers"].keys() <= {"turbo", "mini"}
    assert whole["kept"] is not None, "the promises are the server's own"
    assert found["videos"]["ended"].get("completed", 0) == found["videos"]["ordered"]
    assert "tenant gold" in (tmp_path / "little.html").read_text("utf-8")
