"""One HTML page of a load: what was sent, what came back, and how it went over time. It needs no other file or host."""

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from deployments.load.plots import Frame, Line, draw
from deployments.load.report import ROWS, notes, parts

STYLE = """\
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1a1d21; --faint: #d9dde2; --warn: #8a4b00;
  --series-0: #0060a8; --series-1: #b84a00; --series-2: #007a58; --series-3: #a34b86;
  --series-4: #8f6400; --series-5: #1f7fb0; --series-6: #5b5b5b; --series-7: #7a3db8; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e6e9ed; --faint: #39404a; --warn: #ffb454;
  --series-0: #62b5ff; --series-1: #ff9a57; --series-2: #3fd6a4; --series-3: #f09ad2;
  --series-4: #f2c14e; --series-5: #8fd8ff; --series-6: #b9c0c8; --series-7: #c8a2ff; } }
* { box-sizing: border-box; }
body { background: var(--paper); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; margin: 0 auto;
  max-width: 1360px; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; border-bottom: 1px solid var(--faint); }
.warn { color: var(--warn); font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td { white-space: nowrap; }
th, td { padding: .2rem .8rem .2rem 0; text-align: right; vertical-align: top; }
th:first-child { text-align: left; font-weight: 400; max-width: 9rem; }
thead th { border-bottom: 1px solid var(--faint); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 520px), 1fr)); gap: 1rem; }
svg text { font-family: system-ui, sans-serif !important; }
figure { margin: 0; } figcaption { font-weight: 600; } svg { display: block; width: 100%; height: auto; }
pre { overflow-x: auto; border: 1px solid var(--faint); padding: .6rem; }
"""


def page(found: Mapping[str, Any]) -> str:
    """From what --json says."""
    scenario = found["conditions"]["scenario"]
    title = f"Load: {scenario['name']}" if scenario else "Load"
    body = "\n".join(
        (
            f"<h1>{escape(title)}</h1>",
            f"<p>{escape(scenario['about'])}</p>" if scenario else "",
            *(f'<p class="{"warn" if loud else "note"}">{escape(text)}</p>' for text, loud in notes(found)),
            f'<div class="wide">{_table(found)}</div>',
            *_actions(found),
            *_groups(found),
            f"<h2>Conditions</h2><pre>{escape(json.dumps(found['conditions'], indent=2))}</pre>",
        )
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>\n{body}\n</main></body></html>\n"
    )


def _table(found: Mapping[str, Any]) -> str:
    columns = parts(found)
    rows = [(label, [shown(each[key]) for each in columns.values()]) for label, key, shown in ROWS]
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("", *columns))
    body = "".join(
        f'<tr><th scope="row">{escape(label)}</th>'
        + "".join(f"<td>{escape(cell or '-').replace(', ', '<br>')}</td>" for cell in cells)
        + "</tr>"
        for label, cells in rows
        if any(cells)
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _actions(found: Mapping[str, Any]) -> Iterator[str]:
    for one in found["actions"]:
        if one["began_s"] is None:
            what = "never due"
        elif one["ran"]:
            what = f"at {one['began_s']:.1f} s a command, exit code {one['exit_code']}"
        else:
            what = f"at {one['began_s']:.1f} s told, no command was given"
        yield f"<p><b>{escape(one['name'])}</b>: {escape(one['do'])} ({what})</p>"


def _groups(found: Mapping[str, Any]) -> Iterator[str]:
    time = found["over_time"]
    if not time["begin_s"]:
        return
    frame = Frame(
        begin_s=time["begin_s"],
        bin_s=time["bin_s"],
        warm_up_s=found["warm_up"]["seconds"],
        actions={one["name"]: one["began_s"] for one in found["actions"] if one["began_s"] is not None},
    )
    for name, group in time["groups"].items():
        plots = "".join(_figure(name, caption, lines, label, frame) for caption, label, lines in _pictures(name, group))
        yield f'<section><h2>{escape(name)}</h2><div class="plots">{plots}</div></section>'


def _pictures(name: str, group: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Line]]]:
    rates = {"due": group["due_per_s"], "completed": group["completed_per_s"]}
    if group["goodput_per_s"] is not None:
        rates["goodput: promises kept"] = group["goodput_per_s"]
    yield "Requests", "requests/s", rates
    lost = group["refused_per_s"] | group["failed_per_s"]
    if lost:
        yield "Refusals by code, and failures", "requests/s", lost
    yield "Time to first token, from when it was due", "seconds", group["ttft_s"]
    yield "Time per later token", "milliseconds", group["tpot_ms"]
    yield "Whole answers, from when they were due", "seconds", group["total_s"]
    if name == "all":
        yield "How late requests were sent", "seconds", group["late_s"]


def _figure(group: str, caption: str, lines: Mapping[str, Line], label: str, frame: Frame) -> str:
    """A picture tells the blind its span; the figures themselves stand in the table."""
    known = [value for values in lines.values() for value in values if value is not None]
    if not known:
        return f"<figure><figcaption>{escape(caption)}</figcaption><p>nothing is known</p></figure>"
    told = f"{group}: {caption}: {', '.join(lines)}; {min(known):.3g} to {max(known):.3g} {label}"
    picture = draw(lines, label, frame, f"{group}: {caption}", log=label != "requests/s")
    return (
        f'<figure role="img" aria-label="{escape(told, quote=True)}"><figcaption>{escape(caption)}</figcaption>'
        f"{picture}</figure>"
    )
