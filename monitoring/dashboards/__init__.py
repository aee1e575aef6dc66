"""Dashboards as data: a module each. `render.text(board)` is the JSON that lies beside them for Grafana to import."""

from monitoring.dashboards.decisions import DECISIONS
from monitoring.dashboards.experts import EXPERTS
from monitoring.dashboards.family import FAMILY
from monitoring.dashboards.tenants import TENANTS
from monitoring.dashboards.tier import TIER
from monitoring.dashboards.video import VIDEO

BOARDS = (FAMILY, TIER, EXPERTS, VIDEO, TENANTS, DECISIONS)
