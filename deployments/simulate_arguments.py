"""How `moray simulate` is typed: its options, what they take, and what `--help` says of them.

Light imports only: every `moray` command builds this parser.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from deployments.contenders import OWN_ROUTER, PolicyName, RouterName

DESCRIPTION = """\
Rehearses a workload on a cluster of any size without a GPU: the policies that run
the live cluster run on its twin, with replicas that step by a latency model, cold
starts, failures and prices. Tells what users would see and what it would cost.
Everything in it is simulated. With --replay it takes recorded decisions again.
"""
EPILOG = """\
traces: azure:FILE (t_s, input_tokens, output_tokens), mooncake:FILE (JSON lines
with prefix hashes), servegen:PREFIX (PREFIX_clients.csv and PREFIX_lengths.json;
arrivals are sampled from it by --seed); each may be gzipped.

examples:
  moray simulate --family h200 --trace azure:requests.csv --scale 20 --plot run.png
  moray simulate --family h200 --trace azure:requests.csv --compare moray,kpa/p2c
  moray simulate --replay .moray/decisions.jsonl

Exit code 1 where a replayed decision comes out otherwise.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    work = parser.add_argument_group("the work")
    work_arguments(work)
    work.add_argument(
        "--tier",
        help="what requests ask for where their trace does not say: a tier, a model name, or auto; default: pro if "
        "the family has it, else its first tier",
    )
    _cluster_arguments(parser.add_argument_group("the cluster"))
    policies = parser.add_argument_group("the policies")
    one_or_many = policies.add_mutually_exclusive_group()
    one_or_many.add_argument(
        "--policy", choices=get_args(PolicyName), default="moray", help="how many replicas; default: %(default)s"
    )
    one_or_many.add_argument(
        "--compare",
        metavar="A,B,...",
        help="several policies on the same arrivals, each POLICY[/ROUTER][/name=value]..., like moray,kpa/p2c; "
        "default: the one of --policy",
    )
    policies.add_argument(
        "--router",
        choices=get_args(RouterName),
        help="which replica; default: the policy's own ("
        + ", ".join(f"{policy}: {router}" for policy, router in OWN_ROUTER.items())
        + ")",
    )
    policies.add_argument(
        "--set",
        dest="settings",
        metavar="name=value",
        action="append",
        default=[],
        help="a parameter of the policy, may be repeated; a name that is none is answered with those that are; "
        "default: the policy's own",
    )
    shown = parser.add_argument_group("the report")
    shown.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    shown.add_argument(
        "--plot",
        metavar="FILE.png",
        type=Path,
        help="draw demand, replicas and misses over time there; default: no picture",
    )
    shown.add_argument(
        "--log",
        metavar="FILE.jsonl",
        type=Path,
        help="write every scaling decision of policy moray there, a JSON line each; default: no log",
    )
    shown.add_argument(
        "--replay",
        metavar="FILE.jsonl",
        type=Path,
        help="take the decisions of such a log, or of the control loop's, again and compare; default: rehearse",
    )


def work_arguments(group: argparse._ArgumentGroup, otherwise: str = "") -> None:
    """Of every command that replays traces. `otherwise`: what may say the seed where the command line does not."""
    group.add_argument(
        "--trace",
        metavar="[TIER=]FORMAT:PATH",
        action="append",
        default=[],
        help="requests, may be repeated, each for its own tier; see below; default: none",
    )
    group.add_argument(
        "--video",
        metavar="JOBS_PER_HOUR",
        type=at_least(0.0),
        default=0.0,
        help="video jobs, Poisson; 0 or more; default: %(default)g",
    )
    group.add_argument(
        "--scale",
        metavar="FACTOR",
        type=above(0.0),
        default=1.0,
        help="times as many requests per second, above 0; default: %(default)g",
    )
    group.add_argument(
        "--start-s",
        metavar="SECONDS",
        type=at_least(0.0),
        default=0.0,
        help="skip so much of each trace, 0 or more; default: %(default)g",
    )
    group.add_argument(
        "--duration-s",
        metavar="SECONDS",
        type=above(0.0),
        help="then take so much, above 0; default: all, of servegen traces one hour",
    )
    group.add_argument(
        "--seed",
        metavar="N",
        type=_whole(0),
        default=0,
        help=f"of all chance, a whole number; the same seed gives the same report; default: {otherwise}0",
    )


def _cluster_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--gpus",
        metavar="N",
        type=_gpus,
        help="the GPU budget, 1 or more, or `family` (the family file's budget and replica maxima); default: as many "
        "as the policy asks for. With a number, and by default, replica maxima of the family file do not count",
    )
    group.add_argument(
        "--cold-start-s",
        metavar="SECONDS",
        type=above(0.0),
        help="median time to start a replica, for all tiers, above 0; default: as the family file says for each",
    )
    group.add_argument(
        "--initial",
        metavar="N",
        type=_whole(0),
        help="replicas of each asked tier at the start, 0 or more; default: what the busiest of the first ten "
        "minutes needs",
    )


def at_least(least: float) -> Callable[[str], float]:
    return _number(lambda value: value >= least, f"a number of at least {least:g}")


def above(bound: float) -> Callable[[str], float]:
    return _number(lambda value: value > bound, f"a number above {bound:g}")


def _number(allowed: Callable[[float], bool], words: str) -> Callable[[str], float]:
    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and allowed(value)):
            raise argparse.ArgumentTypeError(f"{text!r}; {words} is allowed")
        return value

    return number


def _whole(least: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r}; a whole number of at least {least} is allowed")
        return value

    return whole


def _gpus(text: str) -> int | Literal["family"]:
    if text == "family":
        return "family"
    try:
        return _whole(1)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or the word family") from error
