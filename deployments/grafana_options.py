"""The options of `moray grafana`, apart from it: the command line asks for them without what they need."""

import argparse
from pathlib import Path

from rich.console import Console

from cluster.family import Family

GRAFANA = """\
Brings what Moray says of itself to a Grafana that runs: `sync` what is looked at,
`annotate` why the control loop did what it did. Credentials come from files alone,
as others see command lines.
"""
SYNC = """\
Makes or puts right a folder, a data source, five dashboards and a group of alert
rules, each with a uid of its own. What is there as it should be is left alone; so is
what Grafana or others have set beside it. A run that fails half-way is completed by
the next one. The alert rules read recordings: Prometheus must load the rules of
`moray render prometheus`.
"""
SYNC_EXAMPLE = """\
example:
  moray grafana sync --url http://127.0.0.1:3000 --token-file token.txt --dry-run --diff
"""
ANNOTATE = """\
Posts the reasons of scaling decisions as annotations, which the dashboards show. It
reads decisions.jsonl in the family's state folder. Reasons that Grafana has are not
posted again: run it as often as you like.
"""
ANNOTATE_EXAMPLE = """\
example:
  moray grafana annotate --url http://127.0.0.1:3000 --token-file token.txt --most 50
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = GRAFANA
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    synced = verbs.add_parser("sync", help="bring folder, data source, dashboards and alert rules to Grafana")
    synced.description, synced.epilog = SYNC, SYNC_EXAMPLE
    synced.add_argument(
        "--prometheus",
        default="http://127.0.0.1:9090",
        metavar="URL",
        help="where Grafana reaches Prometheus; default: %(default)s",
    )
    synced.add_argument("--dry-run", action="store_true", help="only say what would be done")
    synced.add_argument("--diff", action="store_true", help="show what differs, line by line")
    synced.add_argument(
        "--without-alerts", action="store_true", help="no alert rules: Prometheus and Alertmanager raise them already"
    )
    reasons = verbs.add_parser("annotate", help="post the reasons of scaling decisions as annotations")
    reasons.description, reasons.epilog = ANNOTATE, ANNOTATE_EXAMPLE
    reasons.add_argument(
        "--most", type=int, metavar="N", default=200, help="only the newest N, 1 or more; default: %(default)s"
    )
    for verb in verbs.choices.values():
        verb.add_argument("--url", default="http://127.0.0.1:3000", help="of Grafana; default: %(default)s")
        verb.add_argument(
            "--token-file",
            type=Path,
            metavar="FILE",
            help="one line, the token of a service account; default: none, --user is given",
        )
        verb.add_argument("--user", metavar="NAME", help="sign in with --password-file; default: none, by a token")
        verb.add_argument(
            "--password-file", type=Path, metavar="FILE", help="one line, the user's password; default: none"
        )
    parser.set_defaults(run=_run)


def _run(family: Family, arguments: argparse.Namespace, console: Console) -> int:
    from deployments.grafana_command import grafana

    return grafana(family, arguments, console)
