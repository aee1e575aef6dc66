"""What a caller asks of a tier, and what comes back, as frozen values. One vocabulary for every engine and the twin."""

from dataclasses import dataclass
from typing import Literal

from cluster.inputs import Input, Media, Sent, first_of

FinishReason = Literal["stop", "length", "tool_calls"]
ServiceClass = Literal["default", "flex", "priority"]
Effort = Literal["medium", "high", "xhigh", "max"]  # rising
Prompt = str | tuple[int, ...]  # text, or the ids of its tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen. `seed` and the position key each draw, so batch neighbours never change the outcome.

    temperature 0 is greedy. `top_logprobs` None means no log-probabilities; 0 means the chosen token's only.
    Penalties are those of the OpenAI API, over generated tokens: logit -= presence + frequency * count.
    `logit_bias`: (token id, what is added to its logit), no token twice; before a grammar forbids tokens.
    `json_schema`: JSON text of the schema that the answer must meet; only engines with `structured` take one.
    `least_calls` and `most_calls` of tools, None for as many as the engine lets be, are for engines with
    `forced_tools`; so is a schema beside tools: the answer is calls, or meets it.
    `ignore_eos`: an end token is a token like any other, without text; the answer goes on behind it.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    top_logprobs: int | None = None
    json_schema: str | None = None
    least_calls: int = 0
    most_calls: Literal[1] | None = None
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the caller offers. `parameters`: JSON text of the schema of its arguments.

    `strict`: arguments must meet it; only engines with `forced_tools` see to that.
    """

    name: str
    description: str = ""
    parameters: str = '{"type":"object","properties":{}}'
    strict: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One call of a tool. `arguments`: JSON text, as the model wrote it; it may not meet the tool's schema."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """`tool_calls`: what an assistant called. `tool_call_id`: the call that a message of role tool answers.

    `media`: what stands in its text beside it, in order.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    media: tuple[Media, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeds:
    """Vectors are asked for, one of each of the `inputs`, and no answer; only of engines with `embeds`.

    `dimensions`: of each vector, its first ones; None: all. `base64`: of float32, little endian; else as numbers.
    """

    inputs: tuple[Prompt, ...]
    dimensions: int | None = None
    base64: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Who serves a request, for its headers and its usage. `queued_s`: held by the gateway, from arrival to dispatch.

    `spilled`: why another tier than the one asked serves it. `resumed`: how often it went on elsewhere, since the
    replica that served it was lost.
    """

    tier: str
    replica: str
    queued_s: float
    spilled: str | None = None
    resumed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A parsed and validated chat completion. `model` is the name that the caller sent and gets back.

    `continuous_usage`: each chunk of a stream tells the usage so far. `sent`: what stands beside the text of messages,
    unread; once read it is text or `media` of theirs.

    `choices` answers are asked for, to each of the `prompts` where it is a text completion, which has no messages; a
    replica is asked for one of them, number `choice`. `echo`: the prompt's text comes before the answer's.

    `served` is the gateway's choice, None before it was made. `given`: tokens of the answer that the client already
    has from a lost replica; the answer goes on behind them, and counts them. `domain`: the specialist that a hint or a
    persona names, "" where neither does. Higher `priority` goes first. `tools`: those the model may call, none or some.
    `service_class`: asked for, and once the gateway knows its plan, served; None where the caller named none.
    `effort`: of reasoning, where more than little is asked. `traced`: whether its spans are exported. `cache_salt`:
    only chats with the same one share cached prefixes. `embeds`: where vectors are asked for in place of an answer;
    there are no messages then.
    """

    request_id: str
    model: str
    messages: tuple[Message, ...]
    sampling: Sampling
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    created_s: int = 0
    served: Served | None = None
    given: tuple[int, ...] = ()
    domain: str = ""
    priority: int = 0
    service_class: ServiceClass | None = None
    effort: Effort | None = None
    sent: tuple[Sent, ...] = ()
    tools: tuple[Tool, ...] = ()
    traced: bool = False
    prompts: tuple[Prompt, ...] = ()
    choices: int = 1
    choice: int = 0
    echo: bool = False
    cache_salt: str = ""
    embeds: Embeds | None = None

    @property
    def answers(self) -> int:
        """Of all prompts together."""
        return self.choices * max(1, len(self.prompts))

    @property
    def calls(self) -> bool:
        """Whether its tier must know tools: offered, or called before."""
        return bool(self.tools) or any(message.tool_calls for message in self.messages)

    @property
    def inputs(self) -> dict[Input, str]:
        """What its tier must take beside text, each kind with the parameter that has the first. Files are text yet."""
        read = ((media.kind, media.where) for message in self.messages for media in message.media)
        unread = ((sent.kind, sent.where) for sent in self.sent if sent.kind != "file")
        return first_of((*read, *unread))

    @property
    def structured(self) -> bool:
        """Whether its answer is held to a schema."""
        return self.sampling.json_schema is not None

    @property
    def forced(self) -> str | None:
        """The parameter by which its calls are held to a form, None where they are free."""
        return _forced(self.sampling, self.tools)


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What an engine is asked: prompt tokens in, at most `sampling.max_tokens` out, the `given` ones included.

    `given`: the first tokens of the answer, generated elsewhere. They are computed as a prompt is and emit nothing;
    what follows is the same as if this engine had generated them: text, calls, penalties, draws, limit and usage.
    `media`: of all messages, in order; the prompt has one placeholder for each, as the engine's `encode` made it.
    An answer that is `held` has some only where the tier `takes_up`. `domain` and `priority` as in Chat: neither
    changes an answer. Engines that cannot order by priority, torch and simulated, serve in order of arrival. `tools`:
    those whose calls are to be found in the answer; the prompt has them already. `cache_salt`: engines with a prefix
    cache reuse only what was asked with the same one. `embeds`: the prompt's vector is asked for, and no token; then
    `sampling.max_tokens` is 1.
    """

    request_id: str
    prompt: tuple[int, ...]
    sampling: Sampling
    given: tuple[int, ...] = ()
    domain: str = ""
    priority: int = 0
    tools: tuple[Tool, ...] = ()
    media: tuple[Media, ...] = ()
    cache_salt: str = ""
    embeds: bool = False

    @property
    def held(self) -> bool:
        """Whether its answer is held to a grammar: of a schema, or of calls."""
        return self.sampling.json_schema is not None or _forced(self.sampling, self.tools) is not None


def _forced(sampling: Sampling, tools: tuple[Tool, ...]) -> str | None:
    if sampling.least_calls:
        return "tool_choice"
    if sampling.most_calls is not None:
        return "parallel_tool_calls"
    if tools and sampling.json_schema is not None:
        return "response_format"
    return "tools" if any(tool.strict for tool in tools) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """Natural log-probability of the chosen token under the model (before temperature and top_p), and the best few."""

    token: str
    token_bytes: bytes
    logprob: float
    top: tuple[tuple[str, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one step adds to one stream. The last piece has a finish reason and the usage, or an error.

    `ids`: the tokens of this step, as many as `tokens`; with them another replica can go on behind this piece.
    `text` may be empty: bytes of an unfinished character, or text held back because it may begin a stop string.
    `queued_s` comes with the first piece: from submission to the first step that had a place for the request.
    `tool_calls`: all calls of the answer, whole, in its last piece; its finish reason is then "tool_calls". The text of
    a call is no `text`; while it is generated, pieces have tokens and ids alone. `vector`: of length 1, in the only
    piece of a generation that `embeds`.
    """

    tokens: int = 0
    ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    vector: tuple[float, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    queued_s: float | None = None
    error: Exception | None = None

    @property
    def last(self) -> bool:
        return self.finish_reason is not None or self.error is not None
