"""Draws deployments/architecture.svg from the imports that are there and the layers that pyproject.toml allows.

A box or plate is a group of modules. A wire falls from each group, with a dot on every plate below that it imports. Not
drawn: imports among the boxes of the shell, and among the plates of `cluster`. Written by `make architecture`.
"""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import grimp

CHECKOUT = Path(__file__).parents[1]
PICTURE = CHECKOUT / "deployments" / "architecture.svg"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """`modules`: patterns below the package; the first group whose pattern matches has a module, `*` what is left."""

    name: str
    modules: str
    says: str


SHELL = (  # odd ones stand in the upper row, and their wires fall between the boxes of the lower one
    Group(name="gateway", modules="gateway* stream seen stores*", says="OpenAI wire,|desk, rescue,|keys, jobs"),
    Group(name="serve", modules="cli up app update change local source *", says="up, keys; an|edit while|it serves"),
    Group(
        name="replica",
        modules="tier router link sink measure* observe",
        says="Serve's call;|tokens on a|link beside it",
    ),
    Group(name="rehearse", modules="simulate* contenders report_* trace_files", says="simulate,|on the twin"),
    Group(name="engines", modules="engines* ranks", says="torch, vLLM,|DeepSpeed,|simulated"),
    Group(name="load", modules="load load.*", says="traces to a|live server"),
    Group(name="video", modules="video*", says="steps, H.264;|GPUs that it|lends"),
    Group(name="operate", modules="doctor* grafana* render* experts* plan_table", says="doctor,|render, plan,|grafana"),
    Group(name="control", modules="control*", says="the loop's|actor; Serve|follows it"),
)
PLATES: Mapping[str, tuple[Group, ...]] = {
    "monitoring": (
        Group(name="metrics", modules="metrics scrape", says="names, labels, who scrapes them"),
        Group(name="promises", modules="*", says="slo, alerts, runbook, dashboards"),
    ),
    "autoscaling": (
        Group(name="twin", modules="twin* report", says="desk, replicas, nodes, video, event by event"),
        Group(name="peers", modules="peer* forecast ceilings", says="others' policies; what hindsight could do"),
        Group(name="loop", modules="*", says="look, decide, lend, act, record; replay"),
        Group(
            name="policy",
            modules="policy parameters demand outlook cooldown budget signals",
            says="how many replicas, under one GPU budget",
        ),
    ),
    "cluster": (
        Group(name="tier choice", modules="tiering domains", says="which tiers may serve a request"),
        Group(name="routing", modules="routing loads prefix", says="which replica keeps the promise"),
        Group(name="admission", modules="admission fairness held breaker retry", says="now, later, behind, or refused"),
        Group(name="cost", modules="cost correction batching", says="a step's milliseconds; work in GPU-seconds"),
        Group(name="placement", modules="placement packing lending", says="which cell holds what; who makes room"),
        Group(
            name="experts", modules="experts copies dispatch rebalance", says="which expert in which slot of which rank"
        ),
        Group(name="workload", modules="workload traces servegen synthetic", says="what arrives: traces, generators"),
        Group(name="findings", modules="manifest* doctor* finding", says="Kubernetes objects, and what is wrong"),
        Group(name="words", modules="*", says="family, request, fleet, errors: all speak them"),
    ),
}
SAYS = {
    "monitoring": "what we see, as data",
    "autoscaling": "how many, and the rehearsal of it",
    "cluster": "words and decisions",
}
REQUEST = (  # who asks whom, in turn: dots on plates; who does not ask is a box
    ("gateway", None),
    ("gateway", "tier choice"),
    ("gateway", "routing"),
    ("gateway", "admission"),
    ("replica", None),
    ("engines", None),
)
DECISION = (("control", None), ("control", "loop"), ("loop", "policy"), ("loop", "placement"), ("video", None))
KIND = {"gateway": "request", "control": "decision", "loop": "decision", "policy": "decision", "twin": "twin"}

WIDTH = 1000
FIRST_X, PITCH, OWN_X, OWN_PITCH = 372, 56, 842, 20  # wires of the shell; of plates, which begin on them
TOP, BOX_W, BOX_H, PLATE_H, GAP, BAND = 48, 104, 78, 30, 6, 38
LINE = TOP + 2 * (BOX_H + GAP) + 14.0  # between what may touch the machine and what may not
STYLE = """<style>
  svg { --ground: #ffffff; --ink: #1f2328; --faint: #59636e; --plate: #eef1f4; --box: #ffffff; --edge: #8c959f;
        --other: #6e7781; --request: #0969da; --decision: #bc4c00; --twin: #1a7f37; --on: #ffffff; }
  @media (prefers-color-scheme: dark) {
    svg { --ground: #0d1117; --ink: #e6edf3; --faint: #9198a1; --plate: #1c222b; --box: #0d1117; --edge: #656c76;
          --other: #7d8590; --request: #58a6ff; --decision: #f0883e; --twin: #3fb950; --on: #0d1117; }
  }
  text { font: 12.5px system-ui, "Segoe UI", "Liberation Sans", Arial, sans-serif; fill: var(--faint); }
  .name { font-weight: 600; font-size: 14px; fill: var(--ink); }
  .package { font-weight: 700; font-size: 16px; fill: var(--ink); }
  .plate { fill: var(--plate); }
  .box { fill: var(--box); stroke: var(--edge); }
  .pure { stroke: var(--ink); stroke-dasharray: 2 4; }
  .small { font-size: 12px; }
  .chip { stroke: none; }
  .badge, .tag { fill: var(--on); font-weight: 700; font-size: 11.5px; }
  .badge { text-anchor: middle; }
  line { stroke-width: 1.5; }
  .other { fill: var(--other); stroke: var(--other); }
  .request { fill: var(--request); stroke: var(--request); }
  .decision { fill: var(--decision); stroke: var(--decision); }
  .twin { fill: var(--twin); stroke: var(--twin); }
</style>"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """From (x, y) down to the lowest plate that the group imports."""

    x: float
    y: float
    group: str


def layers() -> list[list[str]]:
    """As pyproject.toml allows them, those that import first; of those that share one, none imports another."""
    return [[name.strip() for name in layer.split("|")] for layer in _contract("layers")["layers"]]


def forbidden() -> list[str]:
    """What the plates must not import."""
    found: list[str] = _contract("forbidden")["forbidden_modules"]
    return found


def _contract(kind: str) -> dict[str, Any]:
    contracts = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    found: dict[str, Any] = next(each for each in contracts if each["type"] == kind)
    return found


def group_of(module: str) -> str | None:
    """None: a package itself, or what made the demonstration's checkpoints, which no other module imports."""
    package, _, rest = module.partition(".")
    if not rest or module.startswith("deployments.demo"):
        return None
    named = {pattern: group.name for group in PLATES.get(package, SHELL) for pattern in group.modules.split()}
    return next(
        name for pattern, name in sorted(named.items(), key=lambda one: one[0] == "*") if fnmatch(rest, pattern)
    )


def imports() -> dict[str, frozenset[str]]:
    """By group, the others that its modules import."""
    graph = grimp.build_graph(*(name for layer in layers() for name in layer), cache_dir=None)
    found: dict[str | None, set[str | None]] = {}
    for module in graph.modules:
        imported = map(group_of, graph.find_modules_directly_imported_by(module))
        found.setdefault(group_of(module), set()).update(imported)
    return {name: frozenset(filter(None, others - {name})) for name, others in found.items() if name is not None}


def picture() -> str:
    found, rows = imports(), _rows()
    wires = [*_from_boxes(), *_from_plates(found, rows)]
    bottom = max(rows.values()) + PLATE_H
    parts = [*_shell(), *_plates(rows)]
    for wire in wires:
        parts += _wire(wire, {name: y for name, y in rows.items() if name in found[wire.group]})
        parts += _chip(wire) if wire.group in rows else ()
    for path, kind, signs in ((REQUEST, "request", "123456"), (DECISION, "decision", "abcde")):
        for (group, asked), sign in zip(path, signs, strict=True):
            (wire,) = (each for each in wires if each.group == group)
            if asked is None:
                parts += _badge(wire.x + BOX_W / 2 - 14, wire.y - BOX_H + 14, kind, sign)
            else:
                assert asked in found[group], f"a path says that {group} asks {asked}, but it does not import it"
                parts += _badge(wire.x, rows[asked], kind, sign)
    body = "\n".join([*parts, *_legend(bottom + 18)])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 80:g}" role="img">\n'
        "<title>The layers of Moray and their imports</title>\n"
        f'{STYLE}\n<rect fill="var(--ground)" width="100%" height="100%" rx="8"/>\n{body}\n</svg>\n'
    )


def _rows() -> dict[str, float]:
    """The middle of each plate, by group, from above. What shares a layer is stacked: monitoring, then autoscaling."""
    rows, y = dict[str, float](), LINE
    for package in (name for layer in layers()[1:] for name in reversed(layer)):
        y += BAND
        for group in PLATES[package]:
            rows[group.name] = y + PLATE_H / 2
            y += PLATE_H + GAP
    return rows


def _from_boxes() -> Iterator[Wire]:
    for i, group in enumerate(SHELL):
        yield Wire(x=FIRST_X + PITCH * i, y=TOP + BOX_H + (0 if i % 2 else BOX_H + GAP), group=group.name)


def _from_plates(found: Mapping[str, frozenset[str]], rows: Mapping[str, float]) -> Iterator[Wire]:
    own = {group.name for package, groups in PLATES.items() if package != "cluster" for group in groups}
    asking = (name for name in rows if name in own and found[name] & rows.keys())
    for i, name in enumerate(asking):
        yield Wire(x=OWN_X + OWN_PITCH * i, y=rows[name], group=name)


def _plates(rows: Mapping[str, float]) -> Iterator[str]:
    yield f'<line class="pure" x1="16" x2="{WIDTH - 16}" y1="{LINE:g}" y2="{LINE:g}"/>'
    for package, groups in PLATES.items():
        yield _titled(16, rows[groups[0].name] - PLATE_H / 2 - 11, "package", package, SAYS[package])
        for group in groups:
            y = rows[group.name]
            yield f'<rect class="plate" x="8" y="{y - PLATE_H / 2:g}" width="{WIDTH - 16}" height="{PLATE_H}" rx="5"/>'
            yield _titled(16, y + 5, "name", group.name, group.says)


def _shell() -> Iterator[str]:
    yield _titled(16, 30, "package", "deployments", "the shell: Ray, HTTP, torch, clocks, files, the command line")
    yield _text(16, TOP + 28, "what a person runs", "name")
    yield _text(16, TOP + 48, "moray up, simulate, load, doctor ...")
    y = TOP + BOX_H + GAP
    yield _text(16, y + 28, "what serves", "name")
    yield _text(16, y + 48, "Ray actors, and processes of theirs")
    yield _text(252, y + 26, "a client")
    yield f'<path class="request" fill="none" d="M252 {y + 33}h62"/><path class="request" d="M314 {y + 29}l6 4l-6 4z"/>'
    for wire, group in zip(_from_boxes(), SHELL, strict=True):
        x, top = wire.x - BOX_W / 2, wire.y - BOX_H
        yield f'<rect class="box" x="{x:g}" y="{top:g}" width="{BOX_W}" height="{BOX_H}" rx="6"/>'
        yield _text(x + 9, top + 20, group.name, "name")
        yield from (_text(x + 9, top + 38 + 15 * i, line, "small") for i, line in enumerate(group.says.split("|")))


def _wire(wire: Wire, asked: Mapping[str, float]) -> Iterator[str]:
    assert min(asked.values()) > wire.y, f"{wire.group} asks a plate that lies above its own: change their order"
    kind = KIND.get(wire.group, "other")
    yield f'<line class="{kind}" x1="{wire.x:g}" x2="{wire.x:g}" y1="{wire.y:g}" y2="{max(asked.values()):g}"/>'
    yield from (f'<circle class="{kind}" cx="{wire.x:g}" cy="{y:g}" r="4.5"/>' for _, y in sorted(asked.items()))


def _chip(wire: Wire) -> Iterator[str]:
    """On the plate where the wire begins: whose it is."""
    kind, width = KIND.get(wire.group, "other"), 10 + 7 * len(wire.group)
    yield f'<rect class="{kind}" x="{wire.x - 6:g}" y="{wire.y - 9:g}" width="{width}" height="18" rx="4"/>'
    yield _text(wire.x - 1, wire.y + 4, wire.group, "tag")


def _badge(x: float, y: float, kind: str, sign: str) -> Iterator[str]:
    yield f'<circle class="{kind}" cx="{x:g}" cy="{y:g}" r="9"/>'
    yield _text(x, y + 4, sign, "badge")


def _legend(y: float) -> Iterator[str]:
    yield _text(16, y, "A dot: the group where its wire begins imports the plate that it lies on.")
    yield _text(16, y + 19, f"Nothing below the dotted line imports {', '.join(forbidden())}.")
    x = 16
    for kind, says in (
        ("request", "the request's path, 1 to 6"),
        ("decision", "the decision's path, a to e"),
        ("twin", "the twin, on the same plates"),
        ("other", "other imports"),
    ):
        yield f'<circle class="{kind}" cx="{x + 5}" cy="{y + 38:g}" r="5"/>'
        yield _text(x + 17, y + 42, says)
        x += 232


def _titled(x: float, y: float, kind: str, title: str, says: str) -> str:
    return f'<text x="{x:g}" y="{y:g}"><tspan class="{kind}">{escape(title)}</tspan>  {escape(says)}</text>'


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text{f" class={chr(34)}{kind}{chr(34)}" if kind else ""} x="{x:g}" y="{y:g}">{escape(words)}</text>'


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
