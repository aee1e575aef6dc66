"""Who is compared: a scaling policy, the router beside it and its settings, as text and as values.

    POLICY[/ROUTER][/name=value]...        moray, kpa/p2c, ray/target_ongoing_requests=8

Light imports only: every `moray` command builds its parser from these names.
"""

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from cluster.errors import ConfigurationError

PolicyName = Literal["moray", "ray", "kpa", "dynamo", "static", "clairvoyant"]
RouterName = Literal["moray", "p2c", "predicted", "kv", "prefix"]

OWN_ROUTER: Mapping[PolicyName, RouterName] = {
    "moray": "moray",
    "ray": "p2c",
    "kpa": "predicted",
    "dynamo": "kv",
    "static": "moray",
    "clairvoyant": "moray",
}
P = TypeVar("P")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """`settings`: parameters of the policy, as text."""

    policy: PolicyName
    router: RouterName
    settings: Mapping[str, str]

    @property
    def name(self) -> str:
        router = () if self.router == OWN_ROUTER[self.policy] else (self.router,)
        return "/".join((self.policy, *router, *(f"{name}={value}" for name, value in self.settings.items())))


def contender(policy: PolicyName, router: RouterName | None, settings: Sequence[str], where: str) -> Contender:
    """`settings`: each `name=value`. Raises ConfigurationError."""
    values: dict[str, str] = {}
    for given in settings:
        name, equals, value = given.partition("=")
        if not (name and equals):
            raise ConfigurationError(f"{where}: {given!r}; name=value is allowed; give both")
        if name in values:
            raise ConfigurationError(f"{where}: {name} is given twice; once is allowed; drop one")
        values[name] = value
    return Contender(policy=policy, router=router or OWN_ROUTER[policy], settings=values)


def contenders(given: str, router: RouterName | None, where: str) -> tuple[Contender, ...]:
    """Those of a list with commas; `router` is for those that name none. Raises ConfigurationError."""
    found = tuple(_parsed(one, router, where) for one in given.split(","))
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"{where}: {name} is given twice; each contender is allowed once; drop one")
    return found


def _parsed(given: str, router: RouterName | None, where: str) -> Contender:
    policy, *rest = given.split("/")
    _require(policy, get_args(PolicyName), f"{where}: policy")
    if rest and "=" not in rest[0]:
        name = rest.pop(0)
        _require(name, get_args(RouterName), f"{where}: router")
        router = cast(RouterName, name)
    return contender(cast(PolicyName, policy), router, rest, where)


def _require(given: str, allowed: Sequence[str], where: str) -> None:
    if given not in allowed:
        raise ConfigurationError(f"{where} {given!r}; {', '.join(allowed)} are allowed; choose one")


def parameters(kind: type[P], settings: Mapping[str, str], where: str) -> P:
    """The parameters of a policy with these settings, the others as they are. Raises ConfigurationError."""
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(cast(Any, kind))]
    values: dict[str, object] = {}
    for name, text in settings.items():
        if name not in names:
            known = ", ".join(names) or "none"
            raise ConfigurationError(f"{where}: there is no parameter {name!r}; its parameters: {known}; choose one")
        try:
            values[name] = _value(hints[name], text)
        except ValueError:
            allowed = _words(hints[name])
            raise ConfigurationError(f"{where}: {name}={text}; {allowed} is allowed; change the value") from None
    try:
        return kind(**values)
    except ValueError as error:
        raise ConfigurationError(f"{where}: {error}") from error


def _value(hint: Any, text: str) -> object:
    """The first reading of the text that the type allows. Raises ValueError."""
    if get_origin(hint) in (Union, UnionType):
        for each in get_args(hint):
            with contextlib.suppress(ValueError):
                return _value(each, text)
    words: dict[Any, dict[str, object]] = {bool: {"true": True, "false": False}, NoneType: {"none": None}}
    named = {word: word for word in get_args(hint)} if get_origin(hint) is Literal else words.get(hint, {})
    if text in named:
        return named[text]
    if hint is int:
        return int(text)
    if hint is float and math.isfinite(number := float(text)):
        return number
    raise ValueError(text)


def _words(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_words(each) for each in get_args(hint))
    if get_origin(hint) is Literal:
        return " or ".join(get_args(hint))
    words = {bool: "true or false", int: "a whole number", float: "a number", NoneType: "none"}
    return words.get(hint, "nothing that can be written here")
