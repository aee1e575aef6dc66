"""What somebody does to the server in the course of a run: told at its second, and run where a command was given."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster.errors import ConfigurationError
from deployments.load.scenario import Action

STANDARD_ERROR = 2
AFTERWARDS_S = 30.0  # for a command that still runs when the last answer has ended


@dataclass(slots=True, kw_only=True)
class Acted:
    """`ran`: whether a command was given. `exit_code`: below 0 where a signal ended it."""

    name: str
    do: str
    due_s: float
    ran: bool
    began_s: float | None = None
    exit_code: int | None = None


def commands(given: Sequence[str], actions: Sequence[Action]) -> dict[str, str]:
    """By action, from NAME=COMMAND each. Raises ConfigurationError."""
    found: dict[str, str] = {}
    known = ", ".join(action.name for action in actions) or "none"
    for one in given:
        name, _, command = one.partition("=")
        if not command or name in found or name not in {action.name for action in actions}:
            raise ConfigurationError(
                f"--on: {name!r}; NAME=COMMAND, each action of the scenario once ({known}), is allowed; mend the name"
            )
        found[name] = command
    return found


async def act(
    actions: Sequence[Acted], commands: Mapping[str, str], now: Callable[[], float], tell: Callable[[str], None]
) -> None:
    """All of them, each at its time. A command's output goes to standard error."""
    async with asyncio.TaskGroup() as acting:
        for one in actions:
            acting.create_task(_one(one, commands.get(one.name), now, tell))


async def _one(one: Acted, command: str | None, now: Callable[[], float], tell: Callable[[str], None]) -> None:
    await asyncio.sleep(max(0.0, one.due_s - now()))
    one.began_s = now()
    tell(f"{one.began_s:.1f} s, {one.name}: {'run' if command else 'now'}: {command or one.do}")
    if command is None:
        return
    process = await asyncio.create_subprocess_shell(
        command, stdin=asyncio.subprocess.DEVNULL, stdout=STANDARD_ERROR, start_new_session=True
    )
    try:
        one.exit_code = await process.wait()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        one.exit_code = await process.wait()
        raise


async def ended(acting: "asyncio.Task[None]") -> None:
    """Commands get a while, then they are killed; what was not due yet is never done."""
    await asyncio.wait({acting}, timeout=AFTERWARDS_S if not acting.done() else 0)
    acting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await acting


def told(actions: Sequence[Acted]) -> list[dict[str, Any]]:
    return [asdict(one) for one in actions]
