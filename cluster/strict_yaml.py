"""YAML without a trap: of a repeated key the common loader keeps the last value and drops the others silently."""

from collections.abc import Iterator
from typing import Any

import yaml

from cluster.errors import ConfigurationError


def mapping(text: str, where: str, example: str) -> dict[str, Any]:
    """The mapping in a YAML text. Raises ConfigurationError where it is none, or a key in it is given again.

    `example`: what to start from instead.
    """
    try:
        raw = _strict(text, where)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{where}: not YAML: {error}; mend the syntax") from error
    if not isinstance(raw, dict):
        raise ConfigurationError(f"{where}: given {type(raw).__name__}; a mapping is allowed; start from {example}")
    return raw


def _strict(text: str, where: str) -> Any:
    loader = yaml.SafeLoader(text)
    try:
        top = loader.get_single_node()
        if top is None:
            return None
        for path, key in _repeated(top, (), set()):
            line = key.start_mark.line + 1
            raise ConfigurationError(f"{where}: {path}: given again in line {line}; a key is allowed once; drop one")
        return loader.construct_document(top)
    finally:
        loader.dispose()


def _repeated(node: yaml.Node, path: tuple[str, ...], seen: set[int]) -> Iterator[tuple[str, yaml.Node]]:
    """Keys of mappings at or below the node that an earlier key equals, with their paths."""
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _repeated(item, (*path, str(index)), seen)
    if isinstance(node, yaml.MappingNode):
        names: set[str] = set()
        for key, value in node.value:
            below = (*path, str(key.value))
            if isinstance(key, yaml.ScalarNode) and key.value in names:
                yield ".".join(below), key
            names.add(str(key.value))
            yield from _repeated(value, below, seen)
