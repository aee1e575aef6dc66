"""YAML without a trap: of a repeated key the common loader keeps the last value and drops the others silently."""

from collections.abc import Iterator
from typing import Any

import yaml

from cluster.errors import ConfigurationError


def strict(text: str, where: str) -> Any:
    """What a YAML text says. Raises ConfigurationError where a key is given again, yaml.YAMLError for other faults."""
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
