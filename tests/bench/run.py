"""Run one benchmark: `python tests/bench/run.py NAME [--json]`. One JSON object: figures, aim, met, conditions."""

import argparse
import importlib.util
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
    arguments = parser.parse_args()
    spec = importlib.util.spec_from_file_location("bench", HERE / f"{arguments.name}_bench.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = conditions()
    spec.loader.exec_module(module)
    result: dict[str, Any] = {"name": arguments.name, **module.run()}
    result["conditions"] = before | {name: result.pop(name) for name in ("runs", "spread") if name in result}
    print(json.dumps(result, indent=None if arguments.json else 2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
