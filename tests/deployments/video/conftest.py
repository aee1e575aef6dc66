from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import tiny_pipelines

from deployments.video.engine import VideoEngine

Tiny = Callable[[str], VideoEngine]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A loaded engine of a tiny pipeline, by its family's name. Engines hold no job: tests share them."""

    @cache
    def of(family: str) -> VideoEngine:
        folder: Path = tmp_path_factory.mktemp("pipelines") / family
        engine = VideoEngine(tiny_pipelines.written(family, folder), "float32", "cpu")
        engine.load()
        return engine

    return of
