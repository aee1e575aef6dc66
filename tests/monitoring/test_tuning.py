"""The tuning guide names what exists: metrics of the catalogue and settings of the family file."""

import re
from pathlib import Path

from cluster.engines import Experts
from cluster.family import Auto, Control, Family, Gateway, Plan
from cluster.tier import Replicas, Slo, Tier
from cluster.video import Video, VideoSlo
from monitoring.metrics import CATALOGUE

GUIDE = (Path(__file__).parents[2] / "monitoring" / "tuning.md").read_text(encoding="utf-8")
MODELS = (Auto, Control, Experts, Family, Gateway, Plan, Replicas, Slo, Tier, Video, VideoSlo)
NO_SETTINGS = {"NAME"}


def test_every_metric_of_the_guide_is_catalogued() -> None:
    named = set(re.findall(r"`(moray_[a-z_]+)`", GUIDE))
    assert named
    assert named <= {metric.name for metric in CATALOGUE}


def test_every_setting_of_the_guide_is_one_of_the_family_file() -> None:
    known = {name for model in MODELS for name in model.model_fields}
    column = [line.split("|")[3] for line in GUIDE.splitlines() if line.count("|") == 4 and "---" not in line]
    named = {
        part
        for cell in column
        for one in re.findall(r"`([a-zA-Z_.]+)(?:: [a-z0-9]+)?`", cell)
        for part in one.split(".")
    }
    assert len(named) > 15
    assert named - known - NO_SETTINGS == set()
