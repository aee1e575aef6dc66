"""Serve accepts unknown keys in silence; its config is held against the fields of its own schema here."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema


def unknown(config: Mapping[str, Any]) -> list[str]:
    """Paths of keys that Serve does not know. The arguments of an application are its own."""
    return [*_of(ServeDeploySchema, config, ""), *_of_applications(config)]


def _of_applications(config: Mapping[str, Any]) -> Iterator[str]:
    for index, each in enumerate(config["applications"]):
        where = f"applications.{index}."
        yield from _of(ServeApplicationSchema, each, where)
        for number, deployment in enumerate(each.get("deployments", ())):
            below = f"{where}deployments.{number}."
            field = ServeApplicationSchema.model_fields["deployments"].annotation
            yield from _of(_model(field), deployment, below)


def _of(model: type[BaseModel], given: Mapping[str, Any], where: str) -> Iterator[str]:
    known = model.model_fields
    for key, value in given.items():
        if key not in known:
            yield f"{where}{key}"
            continue
        below = known[key].annotation
        if isinstance(value, Mapping) and isinstance(below, type) and issubclass(below, BaseModel):
            yield from _of(below, value, f"{where}{key}.")


def _model(annotation: Any) -> type[BaseModel]:
    """Of a list of it."""
    model: type[BaseModel] = annotation.__args__[0]
    return model
