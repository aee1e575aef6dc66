"""Which replica holds which prefix: block hash -> the set of replicas, as bits of one integer.

A prompt's blocks are hashed so that equal hashes mean equal prefixes up to there. Walking a prompt's chain with the set
of replicas that held everything so far costs one lookup and one `and` per block, however many replicas there are. Each
replica keeps its most recently used blocks up to its capacity. Callers who share no cache salt their hashes apart.
"""

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from cluster.workload import Floats


def salted(blocks: Sequence[int], salt: str) -> tuple[int, ...]:
    """Hashes that equal those of the same blocks under the same salt, and no others. "" leaves them as they are."""
    mask = int.from_bytes(blake2b(salt.encode(), digest_size=16).digest()) if salt else 0
    return tuple(block ^ mask for block in blocks)


class PrefixIndex:
    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self._holders: dict[int, int] = {}
        self._recent: dict[int, OrderedDict[int, None]] = {}  # by replica, the least recently used block first

    def hits_tokens(self, blocks: Sequence[int], replicas: int) -> Floats:
        """Prefix tokens that each replica 0..replicas-1 holds of such a prompt."""
        hits = np.zeros(replicas)
        held = self._holders.get(blocks[0], 0) if blocks else 0
        for depth, block in enumerate(blocks):
            still = held & self._holders.get(block, 0)
            self._mark(hits, held & ~still, depth)
            held = still
            if not held:
                return hits
        self._mark(hits, held, len(blocks))
        return hits

    def _mark(self, hits: Floats, replicas: int, depth: int) -> None:
        while replicas:
            low = replicas & -replicas
            hits[low.bit_length() - 1] = depth * self.block_tokens
            replicas ^= low

    def insert(self, replica: int, blocks: Sequence[int], capacity_blocks: int) -> None:
        """The replica has computed these blocks; the least recently used go where it has no room."""
        recent = self._recent.setdefault(replica, OrderedDict())
        bit = 1 << replica
        # Backwards, so that of one prompt the end of the chain is forgotten first.
        for block in reversed(blocks):
            recent[block] = None
            recent.move_to_end(block)
            self._holders[block] = self._holders.get(block, 0) | bit
        while len(recent) > capacity_blocks:
            block, _ = recent.popitem(last=False)
            self._release(block, bit)

    def drop(self, replica: int) -> None:
        """The replica is gone."""
        for block in self._recent.pop(replica, ()):
            self._release(block, 1 << replica)

    def _release(self, block: int, bit: int) -> None:
        left = self._holders[block] & ~bit
        if left:
            self._holders[block] = left
        else:
            del self._holders[block]
