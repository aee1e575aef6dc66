from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from cluster.prefix import PrefixIndex, salted

BLOCK = 512
REPLICAS = 3

replicas = st.integers(0, REPLICAS - 1)
# Hashes stand for whole prefixes: the chain of a prompt is the path of a tree of 2 branches, 6 deep.
prompts = st.lists(st.booleans(), max_size=6).map(
    lambda turns: [int("1" + "".join("01"[turn] for turn in turns[: depth + 1]), 2) for depth in range(len(turns))]
)


class SameAsLists(RuleBasedStateMachine):
    """The index against one plain list of blocks per replica, the most recently used last."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex(BLOCK)
        self.held: dict[int, list[int]] = {replica: [] for replica in range(REPLICAS)}

    @rule(replica=replicas, blocks=prompts, capacity=st.integers(0, 12))
    def insert(self, replica: int, blocks: list[int], capacity: int) -> None:
        self.index.insert(replica, blocks, capacity)
        kept = [block for block in self.held[replica] if block not in blocks] + blocks[::-1]
        self.held[replica] = kept[max(0, len(kept) - capacity) :]

    @rule(replica=replicas)
    def drop(self, replica: int) -> None:
        self.index.drop(replica)
        self.held[replica] = []

    @rule(blocks=prompts)
    def hits_are_the_longest_prefix_held(self, blocks: list[int]) -> None:
        expected = [
            next((depth for depth, block in enumerate(blocks) if block not in held), len(blocks)) * BLOCK
            for held in self.held.values()
        ]
        assert self.index.hits_tokens(blocks, REPLICAS).tolist() == expected


TestSameAsLists = SameAsLists.TestCase


@given(st.lists(st.tuples(replicas, prompts, st.integers(0, 12)), max_size=10))
def test_nothing_is_remembered_of_replicas_that_are_gone(inserts: list[tuple[int, list[int], int]]) -> None:
    index = PrefixIndex(BLOCK)
    for replica, blocks, capacity in inserts:
        index.insert(replica, blocks, capacity)
    for replica in range(REPLICAS):
        index.drop(replica)
    assert (index._holders, index._recent) == ({}, {})


def test_the_end_of_a_chain_is_forgotten_first() -> None:
    index = PrefixIndex(BLOCK)
    index.insert(0, [1, 2, 3], 2)
    assert index.hits_tokens([1, 2, 3], 1).tolist() == [2 * BLOCK]


def test_a_tier_without_replicas_holds_nothing() -> None:
    assert PrefixIndex(BLOCK).hits_tokens([1, 2], 0).tolist() == []


SALTS = st.sampled_from(("", "one", "other"))


@given(st.lists(st.tuples(replicas, prompts, SALTS), max_size=8), prompts, SALTS)
def test_a_prefix_is_held_for_those_of_its_salt_and_as_long_as_if_they_were_alone(
    inserts: list[tuple[int, list[int], str]], prompt: list[int], salt: str
) -> None:
    shared, alone = PrefixIndex(BLOCK), PrefixIndex(BLOCK)
    for replica, blocks, of in inserts:
        shared.insert(replica, salted(blocks, of), 100)
        if of == salt:
            alone.insert(replica, blocks, 100)
    hits = shared.hits_tokens(salted(prompt, salt), REPLICAS)
    assert hits.tolist() == alone.hits_tokens(prompt, REPLICAS).tolist()
