"""Run one benchmark: `python tests/bench/run.py NAME [--json]`. One JSON object: figures, aim, met, conditions."""

import argparse
import importlib
import inspect
import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PACKAGES = ("ray", "torch", "transformers", "fastapi")


def conditions() -> dict[str, Any]:
    """The machine as it is now. A load average above a few tenths means that somebody else was measured too."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "load_average_1m": round(os.getloadavg()[0], 2),
        "cpu": _cpu(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "gpu": "none",
        "date": time.strftime("%Y-%m-%d"),
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> int:
    names = sorted(path.name.removesuffix("_bench.py") for path in HERE.glob("*_bench.py"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=names)
    parser.add_argument("--json", action="store_true", help="one line instead of an indented object")
    own = parser.add_argument_group("where the benchmark has them")
    own.add_argument("--traces", metavar="DIR", help="folder of the public traces")
    own.add_argument("--part", help="only these of its parts, with commas between")
    own.add_argument("--litellm", metavar="PYTHON", help="a Python that has litellm[proxy]")
    own.add_argument("--only", metavar="TEXT", help="only work whose name contains this")
    own.add_argument("--seeds", type=int, metavar="N", help="runs, each of another seed")
    own.add_argument("--quick", action="store_true", default=None, help="a first impression")
    own.add_argument("--out", metavar="FILE", help="JSON lines as they come; what is there already is not made again")
    arguments = parser.parse_args()
    before = conditions()
    # Its functions are sent to processes of its own, so it is a module like others.
    sys.path.insert(0, str(HERE.parent))
    module = importlib.import_module(f"bench.{arguments.name}_bench")
    options = {
        action.dest: value for action in own._group_actions if (value := getattr(arguments, action.dest)) is not None
    }
    taken = inspect.signature(module.run).parameters
    if unknown := set(options) - set(taken):
        parser.error(
            f"{arguments.name} has no option {', '.join(sorted(unknown))}; it has: {', '.join(taken) or 'none'}"
        )
    if missing := [name for name, given in taken.items() if given.default is given.empty and name not in options]:
        parser.error(f"{arguments.name} needs --{' --'.join(missing)}")
    result: dict[str, Any] = {"name": arguments.name, **module.run(**options)}
    result["conditions"] = before | {name: result.pop(name) for name in ("runs", "spread") if name in result}
    print(json.dumps(result, indent=None if arguments.json else 2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
