"""The runbook: a paragraph per alert, from the alerts themselves."""

import re

from monitoring.alerts import ALERTS, Alert

METRIC = re.compile(r"\bmoray_\w+(\{[^}]*\})?")
SEVERITIES = {"page": "somebody now", "ticket": "somebody in working hours"}
HEAD = """# Runbook: what each alert means, where to look, how to mend it

Written by `moray render runbook` from `monitoring/alerts.py`; a test compares the two. Mend the text there.
"""


def runbook() -> str:
    """Markdown."""
    return "\n".join((HEAD, *(_paragraph(alert) for alert in ALERTS)))


def _paragraph(alert: Alert) -> str:
    lasting = "at once" if alert.lasting == "0s" else f"once it has lasted {alert.lasting}"
    return (
        f"## {alert.name}\n\n"
        f"*{alert.severity}*, {SEVERITIES[alert.severity]}; {lasting}.\n\n"
        f"**Means.** {_code(alert.means)}\n\n**Look.** {_code(alert.look)}\n\n**Mend.** {_code(alert.mend)}\n"
    )


def _code(text: str) -> str:
    return METRIC.sub(r"`\g<0>`", text)
