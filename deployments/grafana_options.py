"""The options of `moray grafana`, apart from it: the command line asks for them without what they need."""

import argparse
from pathlib import Path

from rich.console import Console

from cluster.family import Family

SYNC = """\
Makes or puts right a folder, a data source, five dashboards and a group of alert rules, each with a uid of its own.
What is there as it should be is left alone; so is what Grafana or others have set beside it. A run that fails half-way
is completed by the next one. The alert rules read recordings: Prometheus must load the rules of `moray render
prometheus`.
"""
ANNOTATE = """\
Reads decisions.jsonl in the family's state folder. Reasons that Grafana has are not posted again: run it as often as
you like. The dashboards show them.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True)
    synced = verbs.add_parser("sync", help="bring folder, data source, dashboards and alert rules to Grafana")
    synced.epilog = SYNC
    synced.add_argument(
        "--prometheus",
        default="http://127.0.0.1:9090",
        metavar="URL",
        help="as Grafana reaches it; default: %(default)s",
    )
    synced.add_argument("--dry-run", action="store_true", help="only say what would be done")
    synced.add_argument("--diff", action="store_true", help="show what differs, line by line")
    synced.add_argument(
        "--without-alerts", action="store_true", help="where Prometheus and Alertmanager raise them already"
    )
    reasons = verbs.add_parser("annotate", help="post the reasons of scaling decisions as annotations")
    reasons.epilog = ANNOTATE
    reasons.add_argument("--most", type=int, default=200, help="only the newest; default: %(default)s")
    for verb in verbs.choices.values():
        verb.add_argument("--url", default="http://127.0.0.1:3000", help="of Grafana; default: %(default)s")
        verb.add_argument("--token-file", type=Path, metavar="FILE", help="with the token of a service account")
        verb.add_argument("--user", help="instead of a token")
        verb.add_argument("--password-file", type=Path, metavar="FILE", help="with the user's password")
        verb.add_argument("--family", default=argparse.SUPPRESS, help="a family file, or one that ships")
    parser.set_defaults(run=_run)


def _run(family: Family, arguments: argparse.Namespace, console: Console) -> int:
    from deployments.grafana_command import grafana

    return grafana(family, arguments, console)
