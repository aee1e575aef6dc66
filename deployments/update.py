"""The family is changed while it is served: its file is looked at, and what was edited there is put in place."""

import functools
import threading
from collections.abc import Callable
from typing import Any

import ray
from ray import serve
from rich.console import Console

from cluster.errors import MorayError
from cluster.family import Family
from cluster.placement import declared_cells, plan, require
from deployments import local
from deployments.app import tiers
from deployments.change import Change, change
from deployments.control.fleet import tier_app
from deployments.control.words import CONTROL, NAMESPACE
from deployments.source import Source
from deployments.up import explain

LOOK_S = 2.0
ADOPT_S = 30.0

Apply = Callable[[Family, Change], None]


class Update:
    """`family` is what is served, read from `text`. What cannot be put in place is told once, and nothing changes."""

    def __init__(self, source: Source, family: Family, text: str, console: Console) -> None:
        self._source = source
        self._family = family
        self._text = text
        self._console = console

    def follow(self, stopping: threading.Event, apply: Apply | None = None) -> None:
        while not stopping.wait(LOOK_S):
            self.look(apply or functools.partial(_in_a_thread, stopping))

    def look(self, apply: Apply) -> None:
        """Once. The file is what was edited, whether it could be served or not."""
        try:
            text = self._source.file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):  # an editor is replacing it
            return
        if text == self._text:
            return
        self._text = text
        try:
            family = self._source.load()
            changed = change(self._family, family)
            local.check_engines(family)
            local.check_checkpoints(family)
            require(plan(family, declared_cells(family)))
        except MorayError as error:
            self._refuse(error)
            return
        if changed.words:
            self._say(changed)
            self._put(family, changed, apply)

    def _put(self, family: Family, changed: Change, apply: Apply) -> None:
        """What fails half-way is undone: what is served is always what the last good file says."""
        try:
            apply(family, changed)
        except MorayError as error:
            self._refuse(error)
            try:
                apply(self._family, changed)
            except MorayError as again:
                self._refuse(again)
            return
        self._family = family
        self._console.print("changed")

    def _refuse(self, error: MorayError) -> None:
        self._console.print(f"not changed: {error.message}", style="red", markup=False, soft_wrap=True)

    def _say(self, changed: Change) -> None:
        self._console.print("the family file was edited:")
        for words in changed.words:
            self._console.print(f"  {words}", markup=False, soft_wrap=True)
        for key in changed.replaced:
            self._console.print(f"  the replicas of {key} are replaced")


def _in_a_thread(stopping: threading.Event, family: Family, changed: Change) -> None:
    """Serve waits until all runs; Ctrl-C is heard meanwhile."""
    failure: list[BaseException] = []

    def run() -> None:
        try:
            put_in_place(family, changed)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive() and not stopping.is_set():
        thread.join(0.5)
    if failure and not stopping.is_set():
        raise explain(failure[0], serve)


def put_in_place(family: Family, changed: Change) -> None:
    """Run changed tiers again with as many replicas as they have; the control loop is told, and tells gateways."""
    if changed.rerun:
        serve.run_many(tiers(family, {key: _replicas(key) for key in changed.rerun}))
    control: Any = ray.get_actor(CONTROL, namespace=NAMESPACE)
    ray.get(control.adopt.remote(family), timeout=ADOPT_S)


def _replicas(key: str) -> int:
    states = serve.status().applications[tier_app(key)].deployments[key].replica_states
    return sum(count for state, count in states.items() if state != "STOPPING")
