"""What an answer is held to, a JSON schema or the form of calls: at each of its tokens, those that may follow.

llguidance takes a grammar and the bytes of the vocabulary, compiles the one lazily against the other, and says by one
bit per token what keeps an answer within it. An answer that is whole may be followed by end tokens alone.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from numpy.typing import NDArray

from cluster.errors import InvalidRequest
from cluster.request import Generation, Tool
from deployments.engines.calls import CLOSE, OPEN

# Not xgrammar: that brings tvm-ffi and triton along, compiles a schema wholly before its first mask, and bounds neither
# that nor a mask. llguidance needs no other package, and its limits are counted, so that they hold on any machine.
_LIMITS = LLParserLimits(
    max_items_in_row=8_000,  # an object of 1000 optional properties has 4000
    step_lexer_fuel=100_000,  # some 7 ms of a mask
    max_lexer_states=8_000,  # some 16 MB of an answer; 1000 properties need less
    max_grammar_size=100_000,
    verbose_errors=False,
)
# Small models may write white space without end: there is one way to write each value.
_FORM: Any = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "coerce_one_of": False,
    "lenient": False,
}
MOST_CALLS = 8  # of one answer: a small model may write them without end
_MOST_COMPILED = 64
_MOST_REASON = 200  # characters


class Held:
    """How far one answer has come in its grammar."""

    __slots__ = ("matcher", "param")

    def __init__(self, matcher: LLMatcher, param: str) -> None:
        self.matcher, self.param = matcher, param

    def take(self, token: int) -> InvalidRequest | None:
        """The answer's next token. Why it cannot go on behind it, if it cannot."""
        if not self.matcher.is_stopped():
            self.matcher.consume_token(token)
        return self.fault

    @property
    def fault(self) -> InvalidRequest | None:
        if not self.matcher.is_error():
            return None
        return InvalidRequest(
            f"{self.param}: no answer goes on within the schema from here: {_reason(self.matcher)}; a schema that "
            "holds itself needs an end, and patterns must be simple; mend the schema",
            param=self.param,
        )


class Grammars:
    """The grammars of one vocabulary. Its methods may be called from any thread."""

    def __init__(self, bytes_of: Sequence[bytes], end_tokens: frozenset[int], tokens: int) -> None:
        """`tokens`: ids, those that pad the vocabulary included."""
        self._ends, self._tokens = sorted(end_tokens), tokens
        padded = [*bytes_of[:tokens], *[b""] * (tokens - len(bytes_of))]
        self._tokenizer = LLTokenizer(TokenizerWrapper(_Vocabulary(padded)), eos_token=self._ends or [0])
        self._schema = lru_cache(_MOST_COMPILED)(self._compile_schema)
        self._calls = lru_cache(_MOST_COMPILED)(self._compile_calls)

    def begin(self, generation: Generation) -> Held:
        """An answer behind its given tokens. Raises InvalidRequest.

        May take a second the first time, which other threads may use.
        """
        s = generation.sampling
        param = "tools" if s.json_schema is None else "response_format"
        if not self._ends:
            raise InvalidRequest(
                f"{param}: given; the checkpoint names no end token, which an answer within a schema needs; leave it "
                "out, or name another tier",
                param=param,
            )
        if s.json_schema is None or generation.tools:
            compiled = self._calls(generation.tools, s.least_calls, s.most_calls or MOST_CALLS, s.json_schema)
        else:
            compiled = self._schema(s.json_schema)
        held = Held(compiled.deep_copy(), param)
        held.matcher.consume_tokens([token for token in generation.given if token not in self._ends])
        if (fault := held.fault) is not None:
            raise fault
        return held

    def masks(self, held: Sequence[Held]) -> NDArray[np.int32]:
        """Which tokens may come next: int32 [held, ceil(tokens / 32)], the lowest bit first."""
        masks = allocate_token_bitmask(len(held), self._tokens)
        for row, one in enumerate(held):
            fill_next_token_bitmask(one.matcher, masks, row)
            if one.matcher.is_error():
                masks[row] = -1  # any token, which nobody will see
        return masks

    def _compile_schema(self, schema: str) -> LLMatcher:
        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides=_FORM)
        except ValueError as error:
            raise _refusal("response_format", "no answer can be held to this schema", str(error)) from error
        matcher, fault = self._compile(grammar)
        if fault:
            raise _refusal("response_format", "no answer can be held to this schema", fault)
        return matcher

    def _compile_calls(self, tools: Sequence[Tool], least: int, most: int, schema: str | None) -> LLMatcher:
        """Arguments of tools that are not strict meet their schema, too, where any can. `schema`: of other answers."""
        if schema is not None:
            self._schema(schema)
            schema = _formed(json.loads(schema))
        arguments = [self._arguments(tool) for tool in tools]
        named = zip(tools, arguments, strict=True)
        matcher, fault = self._compile(LLMatcher.grammar_from_lark(_lark([*named], least, most, schema)))
        if fault:
            raise _refusal("tools", "no calls can be held to their parameters", fault)
        return matcher

    def _arguments(self, tool: Tool) -> str:
        schema = json.loads(tool.parameters)
        _, fault = self._compile(LLMatcher.grammar_from_json_schema(schema, overrides=_FORM))
        if fault and tool.strict:
            raise _refusal("tools", f"no arguments of {tool.name!r} can be held to its parameters", fault)
        return _formed({"type": "object"} if fault else schema)

    def _compile(self, grammar: str) -> tuple[LLMatcher, str]:
        """And why it allows no answer, "" where it does."""
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=_LIMITS)
        first = matcher.deep_copy()
        if not matcher.is_error():
            first.compute_bitmask()
        return matcher, _reason(first) if first.is_error() else ""


class _Vocabulary:
    """As llguidance reads it. Ids without text get a name that is no text either."""

    eos_token_id = 0
    bos_token_id = None

    def __init__(self, bytes_of: Sequence[bytes]) -> None:
        self.special_token_ids = [token for token, data in enumerate(bytes_of) if not data]
        self.tokens = [data or b"\xff<%d>" % token for token, data in enumerate(bytes_of)]
        self._single = {data[0]: token for token, data in enumerate(bytes_of) if len(data) == 1}

    def __call__(self, text: bytes) -> list[int]:
        return [self._single[byte] for byte in text if byte in self._single]


def _formed(schema: dict[str, Any]) -> str:
    return json.dumps(schema | {"x-guidance": _FORM})


def _lark(tools: Sequence[tuple[Tool, str]], least: int, most: int, schema: str | None) -> str:
    """Calls as deployments.engines.calls reads them. Text goes on until it opens a call, and none follows the last.

    With a schema all text is JSON that meets it, and comes alone.
    """
    calls = "\n".join(
        f"""call_{n}: {json.dumps(f'{{"name": "{tool.name}", "arguments": ')} %json {arguments} "}}\""""
        for n, (tool, arguments) in enumerate(tools)
    )
    more = "" if most == 1 else f"more{{0,{most - 1}}}"
    other = "" if least else "| TEXT" if schema is None else f"| %json {schema}"
    begun = f"opened body {more}" if not least and schema is None else f"call {more}"
    return f"""
start: {begun} {other}
opened[lazy]: TEXT "{OPEN}"
more: "\\n" call
call: "{OPEN}" body
body: "\\n" ({" | ".join(f"call_{n}" for n in range(len(tools)))}) "\\n{CLOSE}"
{calls}
TEXT: /(.|\\n)*/
"""


def _refusal(param: str, fault: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"{param}: {fault}: {reason}; mend the schema", param=param)


def _reason(matcher: LLMatcher) -> str:
    """The first line: others show the parser's own state."""
    return matcher.get_error().split("\n")[0].removesuffix(".")[:_MOST_REASON] or "it has none"
