"""Our expert parallelism against an implementation that is not ours: DeepSpeed's MoE layer on two gloo ranks."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import deepspeed_oracle as oracle
import numpy as np
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is missing; mend: pip install '.[deepspeed]'"),
]
SAME = [case for case in oracle.cases() if not case.changed]
CHANGED = [case for case in oracle.cases() if case.changed]
Found = list[dict[str, np.ndarray[Any, Any]]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What each rank computed."""
    folder = tmp_path_factory.mktemp("oracle")
    files = [folder / f"{rank}.npz" for rank in range(oracle.RANKS)]
    program = [sys.executable, oracle.__file__]
    ranks = [
        subprocess.Popen(
            [*program, str(rank), str(folder / "store"), str(file)],
            cwd=Path(__file__).parents[3],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, file in enumerate(files)
    ]
    try:
        said = [rank.communicate(timeout=180)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * oracle.RANKS, "\n".join(said)
    return [dict(np.load(file)) for file in files]


@pytest.mark.parametrize("case", SAME, ids=lambda case: case.name)
def test_each_rank_computes_what_deepspeed_does(found: Found, case: oracle.Case) -> None:
    for rank, tokens in zip(found, oracle.TOKENS[case.tokens], strict=True):
        assert rank[f"{case.name}: theirs"].shape == (tokens, oracle.HIDDEN)
        np.testing.assert_allclose(rank[f"{case.name}: ours"], rank[f"{case.name}: theirs"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", [case for case in SAME if case.slots == "copies"], ids=lambda case: case.name)
def test_copies_share_the_rows_of_their_expert(found: Found, case: oracle.Case) -> None:
    """Of all ranks together, each copy computed some; what was sent is what was chosen."""
    routed = np.sum([rank[f"{case.name}: routed"] for rank in found], 0)
    chosen = np.concatenate([rank[f"{case.name}: chosen"].ravel() for rank in found])
    slots = np.array(oracle.SLOTS["copies"])
    assert np.bincount(slots, routed, oracle.EXPERTS).tolist() == np.bincount(chosen, minlength=oracle.EXPERTS).tolist()
    if case.tokens == "even":
        assert routed[[0, 1, 8, 9]].all()


@pytest.mark.parametrize("case", CHANGED, ids=lambda case: case.name)
def test_one_weight_changed_by_a_hundredth_shows_in_the_rows_of_its_expert_alone(
    found: Found, case: oracle.Case
) -> None:
    for rank in found:
        hit = (rank[f"{case.name}: chosen"] == oracle.CHANGED).any(1)
        off = np.abs(rank[f"{case.name}: ours"] - rank[f"{case.name}: theirs"]).max(1)
        assert hit.any()
        assert (off[hit] > 1e-4).all()
        assert (off[~hit] < 1e-6).all()
