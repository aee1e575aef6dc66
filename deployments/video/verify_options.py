"""The options of `moray video`, apart from it: the command line asks for them without what they need."""

import argparse
from pathlib import Path

from rich.console import Console

from cluster.family import Family

VIDEO = "What a video or a still says of itself: nothing is sent anywhere, no server is needed."
VERIFY = """\
Checks the content credentials (C2PA) of an MP4, WebP or JPEG, tells what it was made
of, and looks for the watermark in the frames of a video. The watermark's key is that
of the state folder; without it the watermark is not looked for.
"""
VERIFY_EPILOG = """\
examples:
  moray video verify clip.mp4
  moray video verify clip.mp4 --anchors ca.pem --json

Exit code 1 where credentials are missing or invalid; Valid, by a signer whom no
anchor knows, is 0.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = VIDEO
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    verified = verbs.add_parser("verify", help="content credentials and watermark of a file")
    verified.description, verified.epilog = VERIFY, VERIFY_EPILOG
    verified.add_argument("file", type=Path, metavar="FILE", help="a video or a still")
    verified.add_argument(
        "--anchors",
        type=Path,
        metavar="PEM",
        help="roots whose signers are trusted; default: the development root of the state folder, where there is one",
    )
    verified.add_argument("--json", action="store_true", help="JSON instead of text")
    parser.set_defaults(run=_run)


def _run(family: Family, arguments: argparse.Namespace, console: Console) -> int:
    from deployments.video.verify_command import verified

    return verified(family, arguments, console)
