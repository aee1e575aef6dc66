"""What `moray keys` and `moray plans` are asked. Light imports only: every `moray` command builds this parser."""

import argparse

from rich.console import Console

from cluster.access import DEFAULT, SCOPES, USUAL
from cluster.family import Family

KEYS = """\
API keys of the gateway that uses the same state folder: `state_folder` of the
family file, below the directory in which the command is run; or those in the
database that `accounts.database` names. Only their hashes are kept. A running
gateway sees a change at once. Each change is written to a log of acts.
"""
CREATE = f"""\
Makes an API key and shows it, this once: only its hash is kept. A key is of a
project of an organisation; both exist with their first key. Its scopes:

{chr(10).join(f"  {scope:<8} {what}" for scope, what in SCOPES.items())}
"""
CREATE_EXAMPLE = """\
examples:
  moray keys create alice --plan professional
  moray keys create ops --scope admin --expires 90d
  moray keys create studio --org acme --project trailers --scope videos,files
"""
LIST = """\
Keys, the oldest first, the revoked too, with what they may do and until when; never
the secrets. A table leaves out what all of them have in common, and in less than 100
columns when they were made; --json tells everything.
"""
LIST_EXAMPLE = """\
examples:
  moray keys list --search acme/
  moray keys list --json
"""
REVOKE = "Refuses a key from now on. Requests that it has begun end as they would have."
ROTATE = """\
Gives a key a new secret, shown this once. The secret of before is refused from now
on, or stays valid for the grace that is given. Its id, plan and scopes stay.
"""
LOG = "Who created, rotated or revoked keys, when, and from where, refused acts of admins too; oldest first."
PLANS = "What each plan of the family file allows. A key without a plan may use every tier."
WHICH = "its id, a beginning that fits one key alone, or the key itself"


def add_arguments(keys: argparse.ArgumentParser) -> None:
    keys.description = KEYS
    verbs = keys.add_subparsers(dest="verb", metavar="VERB", required=True)
    _create(verbs.add_parser("create", help="make a key; it is shown this once"))
    shown = verbs.add_parser("list", help="all keys, without their secrets")
    shown.description, shown.epilog = LIST, LIST_EXAMPLE
    shown.add_argument("--org", help="of this organisation alone; default: of all")
    shown.add_argument(
        "--search", metavar="TEXT", default="", help="part of an id, a name, organisation/project or plan; default: any"
    )
    shown.add_argument(
        "--limit", type=int, metavar="N", help="so many at most, 1 to 1000000; default: 100 in a table, all with --json"
    )
    shown.add_argument("--after", metavar="ID", help="those behind this one; default: from the oldest on")
    rotate = verbs.add_parser("rotate", help="give a key a new secret")
    rotate.description, rotate.epilog = ROTATE, "example:\n  moray keys rotate key_3f9a --grace 1h\n"
    rotate.add_argument("key", help=WHICH)
    rotate.add_argument(
        "--grace", default="0s", metavar="TIME", help="how long the secret of before stays valid; default: %(default)s"
    )
    revoke = verbs.add_parser("revoke", help="refuse a key from now on")
    revoke.description, revoke.epilog = REVOKE, "example:\n  moray keys revoke key_3f9a\n"
    revoke.add_argument("key", help=WHICH)
    log = verbs.add_parser("log", help="who changed keys")
    log.description, log.epilog = LOG, "example:\n  moray keys log --last 20\n"
    log.add_argument(
        "--last", type=int, default=100, metavar="N", help="so many acts, 1 to 100000; default: %(default)s"
    )
    for each in verbs.choices.values():
        each.add_argument("--json", action="store_true", help="JSON instead of tables")
        each.set_defaults(run=_keys)


def _create(create: argparse.ArgumentParser) -> None:
    create.description, create.epilog = CREATE, CREATE_EXAMPLE
    create.add_argument("name", help="who will use it, in words that can be printed")
    create.add_argument(
        "--plan", help="of the family file; default: none, so the key may use every tier and is never spilled"
    )
    create.add_argument("--org", default=DEFAULT, help="whose key it is; default: %(default)s")
    create.add_argument("--project", default=DEFAULT, help="of the organisation; default: %(default)s")
    create.add_argument(
        "--scope", metavar="SCOPE[,SCOPE]", help=f"what it may do; default: {','.join(USUAL)}", default=",".join(USUAL)
    )
    create.add_argument(
        "--expires", metavar="TIME", help="refused so long from now: 90d, 12h, 30m, 45s; default: never"
    )


def add_plan_arguments(plans: argparse.ArgumentParser) -> None:
    plans.description, plans.epilog = PLANS, "example:\n  moray plans --json\n"
    plans.add_argument("--json", action="store_true", help="JSON instead of a table")
    plans.set_defaults(run=_plans)


def _keys(family: Family, arguments: argparse.Namespace, console: Console) -> int:
    from deployments.keys_command import keys

    return keys(family, arguments, console)


def _plans(family: Family, arguments: argparse.Namespace, console: Console) -> int:
    from deployments.keys_command import plans

    return plans(family, arguments, console)
