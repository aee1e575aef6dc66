"""How `moray load` is typed: its options, what they take, and what `--help` says of them. Light imports only."""

import argparse
from pathlib import Path

from deployments.load.options import SYNTHETIC_S
from deployments.simulate_arguments import above, at_least, work_arguments

DESCRIPTION = """\
Sends a trace, a scenario or a made-up mix to any OpenAI-compatible server in an
open loop, and tells what became of each request. Each is sent at its time, whatever
became of the others, and never again. Latencies count from that time; those from the
true send stand beside them.
"""
EPILOG = """\
traces: azure:FILE, mooncake:FILE, servegen:PREFIX, as of `moray simulate`. Keys come
from files alone, as others see command lines.

examples:
  moray load --key key.txt --scenario tests/load/spike.yaml --html spike.html
  moray load --key key.txt --synthetic 5:500:100 --minutes 2 --json
  moray load compare before.json after.json

Exit code 0 where the run came to its end, whatever the server answered; 130 where
Ctrl-C ended it: what had come till then is reported.
"""
COMPARE = """\
Two runs side by side, from what --json wrote of them, with what differs in their
conditions. Of several runs on a side: medians, and a range with its probability.
"""
COMPARED = "example:\n  moray load compare a1.json,a2.json,a3.json b1.json,b2.json,b3.json\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    _server_arguments(parser.add_argument_group("the server"))
    _work_arguments(parser.add_argument_group("the work"))
    _report_arguments(parser.add_argument_group("the report"))
    parser.set_defaults(seed=None)  # a scenario has its own
    verbs = parser.add_subparsers(dest="load_verb", metavar="compare", required=False)
    compare = verbs.add_parser("compare", help="two runs side by side, from their --json")
    compare.description, compare.epilog = COMPARE, COMPARED
    for name, words in (("before", "A"), ("after", "B")):
        compare.add_argument(name, metavar=f"{words}.json[,...]", help="one run, or several of the same conditions")
    compare.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="one JSON object instead of tables"
    )


def _server_arguments(server: argparse._ArgumentGroup) -> None:
    server.add_argument(
        "--url", default="http://127.0.0.1:8000", help="of the server, with or without /v1; default: %(default)s"
    )
    server.add_argument(
        "--key",
        metavar="[NAME=]FILE",
        action="append",
        default=[],
        help="a file with an API key, repeated for several tenants; default: requests carry none",
    )
    server.add_argument(
        "--map",
        metavar="NAME=MODEL,...",
        default="",
        help="what the server calls a tier or model of the work; default: what it lists for a tier, else the name",
    )
    server.add_argument(
        "--body",
        metavar="JSON",
        default="{}",
        help='more fields for each request, an object like {"ignore_eos": true}; default: %(default)s',
    )


def _work_arguments(work: argparse._ArgumentGroup) -> None:
    work_arguments(work, "the scenario's, else ")
    work.add_argument(
        "--scenario", metavar="FILE.yaml", type=Path, help="instead of a trace: as this file says; default: none"
    )
    work.add_argument(
        "--on",
        metavar="NAME=COMMAND",
        action="append",
        default=[],
        help="run this in a shell when the scenario's action is due, may be repeated; default: it is told only",
    )
    work.add_argument(
        "--synthetic",
        metavar="RPS[:PROMPT:OUTPUT]",
        help="instead of a trace: Poisson arrivals per second, above 0, of so many tokens each, 500 and 100 where they "
        "are left out; default: none",
    )
    work.add_argument(
        "--speed",
        metavar="FACTOR",
        type=above(0.0),
        default=1.0,
        help="times as fast as the trace, above 0; default: %(default)g",
    )
    work.add_argument(
        "--minutes",
        type=above(0.0),
        help="send for so long, above 0, instead of --duration-s, which counts the trace's own time; default: to the "
        f"end of the trace or scenario, of --synthetic {SYNTHETIC_S:g} s",
    )
    work.add_argument(
        "--warm-up-s",
        metavar="SECONDS",
        type=at_least(0.0),
        help="what is due in the first so many, 0 or more, is sent, but not judged; default: the scenario's, else 0",
    )
    work.add_argument(
        "--models",
        metavar="NAME[=SHARE],...",
        default="",
        help="what requests ask for where their trace does not say; default: the first model that the server lists",
    )
    work.add_argument(
        "--tenants",
        metavar="NAME[=SHARE],...",
        default="",
        help="who asks, and how much of it; default: the scenario's, else those of --key alike",
    )


def _report_arguments(shown: argparse._ArgumentGroup) -> None:
    shown.add_argument(
        "--slo",
        metavar="[MODEL=]TTFT_S:TPOT_MS",
        action="append",
        default=[],
        help="the promises to judge by, seconds and milliseconds, may be repeated; default: what the server says of "
        "its models",
    )
    shown.add_argument(
        "--silence-s",
        metavar="SECONDS",
        type=above(0.0),
        default=120.0,
        help="give a request up after so long without a byte, above 0; default: %(default)g",
    )
    shown.add_argument(
        "--video-wait-s",
        metavar="SECONDS",
        type=above(0.0),
        default=600.0,
        help="give a video up after so long, above 0; default: %(default)g",
    )
    shown.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    shown.add_argument(
        "--html",
        metavar="FILE.html",
        type=Path,
        help="write one page with plots there, which needs nothing else; default: no page",
    )
    shown.add_argument(
        "--records", metavar="FILE.jsonl", type=Path, help="write each request there, a JSON line each; default: none"
    )
