"""Decisions as JSON lines, one each, and the same decisions taken again: `differing([line(record)])` is always empty.

A line holds what a decision saw, what it decided and, for scaling, its memory before and after; a tick leaves out what
the scaling decision before it in the file has left. Numbers keep every bit:
floats are written with the fewest digits that read back as the same number, infinity and NaN as `Infinity` and `NaN`;
arrays become lists. Same means the same bytes, so -0.0 is not 0.0, and NaN is NaN.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, get_type_hints

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, ConfigDict, Field, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import core_schema

from autoscaling.parameters import Parameters
from autoscaling.policy import Memory, step
from autoscaling.signals import Decision, Seen, Spec
from cluster.admission import Due, Verdict, decide
from cluster.cost import Service
from cluster.errors import ConfigurationError, RequestError
from cluster.family import Family, Plan
from cluster.lending import Awaiting, Moves, Room, WorkerHeld, lend
from cluster.lending import Wish as VideoWish
from cluster.loads import Ask, Choice, Loads
from cluster.routing import choose
from cluster.tiering import Range, Wish, tiers_for
from cluster.workload import Floats


def _column(kind: type[np.float64] | type[np.bool_]) -> AfterValidator:
    def array(values: list[Any]) -> NDArray[Any]:
        return np.array(values, dtype=kind)

    return AfterValidator(array)


FloatColumn = Annotated[list[float], _column(np.float64)]
COLUMNS: dict[Any, Any] = {
    Floats: FloatColumn,
    Floats | None: FloatColumn | None,
    NDArray[np.bool_]: Annotated[list[bool], _column(np.bool_)],
}


class _Columns:
    """Marks a dataclass with arrays: the same fields in JSON, with lists."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        row = {
            name: core_schema.typed_dict_field(handler.generate_schema(COLUMNS.get(hint, hint)))
            for name, hint in get_type_hints(source).items()
        }

        def built(given: dict[str, Any]) -> Any:
            return source(**given)

        def listed(value: Any) -> dict[str, Any]:
            items = {field.name: getattr(value, field.name) for field in fields(source)}
            return {name: item.tolist() if isinstance(item, np.ndarray) else item for name, item in items.items()}

        return core_schema.no_info_after_validator_function(
            built,
            core_schema.typed_dict_schema(row, extra_behavior="forbid"),
            serialization=core_schema.plain_serializer_function_ser_schema(listed),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    kind: Literal["scaling"] = "scaling"
    seen: Seen
    memory: Memory | None
    spec: Spec
    parameters: Parameters
    decision: Decision
    after: Memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    kind: Literal["routing"] = "routing"
    loads: Annotated[Loads, _Columns()]
    ask: Annotated[Ask, _Columns()]
    service: Annotated[Service, _Columns()]
    now_s: float
    packing: bool
    choice: Choice


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    kind: Literal["admission"] = "admission"
    best: Choice | None
    due: Due
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A request that no tier may serve, as the error says it."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiering:
    kind: Literal["tiering"] = "tiering"
    wish: Wish
    plan: Plan | None
    family: Family
    outcome: Range | Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Lending:
    kind: Literal["lending"] = "lending"
    rooms: tuple[Room, ...]
    workers: tuple[WorkerHeld, ...]
    awaiting: tuple[Awaiting, ...]
    wish: VideoWish
    moves: Moves


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A scaling decision that goes on from what the one before it left: memory, spec and parameters."""

    kind: Literal["tick"] = "tick"
    seen: Seen
    decision: Decision


Record = Scaling | Routing | Admission | Tiering | Lending | Tick
_RECORDS: TypeAdapter[Record] = TypeAdapter(
    Annotated[Record, Field(discriminator="kind")],
    config=ConfigDict(extra="forbid", strict=True, ser_json_inf_nan="constants"),
)


def line(record: Record) -> str:
    """Without the line's end."""
    return _RECORDS.dump_json(record).decode()


def parse(text: str, number: int) -> Record:
    """The record in the line with this number. Raises ConfigurationError."""
    try:
        return _RECORDS.validate_json(text)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        path = ".".join(str(part) for part in fault["loc"]) or "(top)"
        raise ConfigurationError(
            f"line {number}: {path}: {fault['msg']}; one recorded decision is allowed; take the line out"
        ) from error


def follow(before: Scaling, tick: Tick) -> Scaling:
    """The decision of a tick, as it is taken now, behind the one before it."""
    decision, after = step(tick.seen, before.after, before.spec, before.parameters)
    return replace(before, seen=tick.seen, memory=before.after, decision=decision, after=after)


def again(record: Record) -> Record:
    """The record with the decision as it is taken now. A tick needs `follow`, and is returned as it is."""
    match record:
        case Scaling():
            decision, after = step(record.seen, record.memory, record.spec, record.parameters)
            return replace(record, decision=decision, after=after)
        case Routing():
            return replace(
                record, choice=choose(record.loads, record.ask, record.service, record.now_s, record.packing)
            )
        case Admission():
            verdict = decide(record.best, record.due)
            return replace(record, verdict=verdict)
        case Lending():
            return replace(record, moves=lend(record.rooms, record.workers, record.awaiting, record.wish))
        case Tiering():
            return replace(record, outcome=outcome(record.wish, record.plan, record.family))
        case _:
            return record


def outcome(wish: Wish, plan: Plan | None, family: Family) -> Range | Refused:
    """What a Tiering records."""
    try:
        return tiers_for(wish, plan, family)
    except RequestError as error:
        return Refused(code=error.code, message=error.message)


def differing(texts: Iterable[str]) -> list[int]:
    """The numbers, from 1, of the lines whose decision comes out otherwise now. Raises ConfigurationError."""
    found, before = [], None
    for number, text in enumerate(texts, 1):
        record = parse(text, number)
        now = again(record)
        if isinstance(record, Tick):
            if before is None:
                raise ConfigurationError(
                    f"line {number}: a tick; one behind a scaling decision is allowed; begin with the older file"
                )
            before = follow(before, record)
            now = replace(record, decision=before.decision)
        elif isinstance(record, Scaling):
            before = record
        if line(now) != line(record):
            found.append(number)
    return found
