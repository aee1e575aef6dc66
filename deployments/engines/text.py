"""From token bytes to the text of a stream: characters cut between tokens, and stop strings.

Bytes of an unfinished character are held back, and so is text that may still begin a stop string. What comes out does
not depend on how the text was cut into tokens: the stop string that is complete first ends the stream, and its text is
not emitted. Invalid UTF-8 becomes U+FFFD, as tokenizers do.
"""

import codecs
from collections.abc import Sequence

from tokenizers import Tokenizer

from cluster.errors import CheckpointError


class TextStream:
    """The text of one stream, piece by piece."""

    __slots__ = ("_decoder", "_held", "_stop")

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = tuple(stop)
        self._held = ""

    def push(self, data: bytes) -> tuple[str, bool]:
        """The text that may be emitted now, and whether a stop string ended the stream."""
        return self._release(self._decoder.decode(data))

    def flush(self) -> tuple[str, bool]:
        """What was held back, once no token follows. Half a character may complete a stop string as U+FFFD."""
        text, stopped = self._release(self._decoder.decode(b"", final=True))
        return (text, True) if stopped else (text + self._held, False)

    def _release(self, new: str) -> tuple[str, bool]:
        if not self._stop:
            return new, False
        text = self._held + new
        ends = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if ends:
            self._held = ""
            return text[: min(ends)[1]], True
        keep = max(overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that begins the stop string."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def vocabulary_bytes(tokenizer: Tokenizer, where: str) -> list[bytes]:
    """The bytes of each token id. Special tokens have none: they are not text.

    Byte-level vocabularies write byte b as one printable character; the table is the one of GPT-2.
    """
    decoder = type(tokenizer.decoder).__name__
    if decoder != "ByteLevel":
        raise CheckpointError(f"{where}: decoder is {decoder}; ByteLevel is allowed; give a byte-level BPE tokenizer")
    byte_of = {character: byte for byte, character in _printable_bytes().items()}
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    table = [b""] * (max(vocabulary.values()) + 1)
    for token, index in vocabulary.items():
        if token not in special:
            known = all(character in byte_of for character in token)
            table[index] = bytes(byte_of[c] for c in token) if known else token.encode("utf-8")
    return table


def _printable_bytes() -> dict[int, str]:
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(rest)}
