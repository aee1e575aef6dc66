"""What `moray usage` is asked. Light imports only: every `moray` command builds this parser."""

import argparse

from rich.console import Console

from cluster.family import Family

WHAT = """\
What was used and charged, from the ledger of the gateway that uses the same state
folder, or of the database that `accounts.database` names: tokens, seconds of video,
list price, and what serving it cost: GPU-seconds, those of idle and starting replicas
shared by use per tier and hour. What replicas held in hours in which nobody used their
tier is nobody's: it is told below the table, and in rows marked unallocated, of no key
or organisation, with --json and --csv. Times are UTC.
"""
EXAMPLES = """\
examples:
  moray usage --by key,model
  moray usage --days 30 --by org,tier --csv
"""
BY = ("key", "project", "org", "tier", "asked", "model", "kind", "code")


def add_arguments(usage: argparse.ArgumentParser) -> None:
    usage.description, usage.epilog = WHAT, EXAMPLES
    usage.add_argument("--days", type=int, default=7, metavar="N", help="1 to 3660, today too; default: %(default)s")
    usage.add_argument(
        "--by",
        default="org",
        metavar="WHAT[,WHAT]",
        help=f"beside the day: {', '.join(BY)}; tier: that served, asked: that was asked; default: %(default)s",
    )
    usage.add_argument("--key", metavar="ID", help="of this key alone; default: of all")
    usage.add_argument("--org", help="of this organisation alone; default: of all")
    shapes = usage.add_mutually_exclusive_group()
    shapes.add_argument("--json", action="store_true", help="JSON instead of a table")
    shapes.add_argument("--csv", action="store_true", help="comma-separated values instead of a table")
    usage.set_defaults(run=_run)


def _run(family: Family, arguments: argparse.Namespace, console: Console) -> int:
    from deployments.usage_command import usage

    return usage(family, arguments, console)
