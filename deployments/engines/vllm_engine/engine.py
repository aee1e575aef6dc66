"""vLLM behind the seam. Its scheduler and its ranks are processes of their own; this one submits and receives.

What differs from the torch engine: an answer that goes on behind given tokens draws other tokens than it would have
without the break, and may pay a presence penalty twice; answers held to a form cannot go on. vLLM exports no expert
loads: it balances experts by itself, and `report` has none.
"""

import asyncio
import contextlib
import functools
import itertools
import logging
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.errors import (
    CheckpointError,
    ConfigurationError,
    EngineFailed,
    InvalidRequest,
    Overloaded,
    RequestError,
)
from cluster.family import Tier
from cluster.request import Generation, Message, Piece, Sampling, Tool
from deployments.engines.engine import Emit, EngineReport
from deployments.engines.limits import most_tokens
from deployments.engines.torch_engine.chat import ChatTokenizer
from deployments.engines.vllm_engine.arguments import Accelerator, arguments, environment
from deployments.engines.vllm_engine.calls import Calls
from deployments.engines.vllm_engine.forms import structural_tag
from deployments.engines.vllm_engine.inputs import Beside
from deployments.engines.vllm_engine.steps import Steps
from deployments.engines.vllm_engine.streams import Step, Stream

log = logging.getLogger(__name__)


class VllmEngine:
    label = ""
    embeds = 0
    structured = True

    def __init__(self, tier: Tier, accelerator: Accelerator) -> None:
        self.context_tokens = tier.context_tokens
        self.inputs = tier.inputs
        self.tools, self.forced_tools = tier.tools, tier.forced_tools
        self._tier, self._accelerator = tier, accelerator
        self._arguments = arguments(tier, accelerator)
        self._engine: Any = None
        self._steps: list[Steps] = []
        self._streams: dict[str, Stream] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: EngineFailed | None = None
        self._numbers = itertools.count()
        self._cached_tokens = 0
        self._stream_s = 0.0

    async def start(self) -> None:
        """A minute on CPU: vLLM imports itself anew in each of its processes."""
        await asyncio.to_thread(self._load)
        ended: asyncio.Future[Piece] = asyncio.get_running_loop().create_future()
        first = Sampling(temperature=0, max_tokens=2, top_logprobs=0)
        self.submit(
            Generation(request_id="", prompt=(0,) * 8, sampling=first),
            lambda piece: ended.set_result(piece) if piece.last else None,
        )
        if (error := (await ended).error) is not None:
            raise error

    def encode(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[int, ...]:
        return self._tokenizer.encode(messages, tools, self._beside.texts(messages))

    def encode_text(self, text: str) -> tuple[int, ...]:
        return self._tokenizer.encode_text(text)

    def submit(self, generation: Generation, emit: Emit) -> None:
        self.check()
        stream = Stream(
            generation=generation,
            max_tokens=self._most_tokens(generation),
            emit=emit,
            bytes_of=self._bytes_with_special if generation.tools else self._tokenizer.bytes_of,
            calls=Calls(self._parser, generation.tools) if generation.tools else None,
        )
        if (over := stream.resume(frozenset() if generation.sampling.ignore_eos else self._end_tokens)) is not None:
            emit(over)
            return
        key = generation.request_id
        if key in self._streams:
            raise InvalidRequest(f"request_id: {key!r} is running; a new one is allowed; choose another")
        self._admit()
        params = self._params(stream)
        self._streams[key] = stream
        stream.task = asyncio.get_running_loop().create_task(self._run(stream, params))
        self._tasks.add(stream.task)  # the loop itself holds them weakly
        stream.task.add_done_callback(self._tasks.discard)

    def cancel(self, request_id: str) -> None:
        if (stream := self._streams.pop(request_id, None)) is not None:
            stream.open = False
            if stream.task is not None:
                stream.task.cancel()

    def report(self) -> EngineReport:
        streams = list(self._streams.values())
        running = min(len(streams), sum(each.running for each in self._steps))
        used = sum(each.kv_share for each in self._steps) / len(self._steps) if streams else 0.0
        seen = self._steps[0]
        return EngineReport(
            running=running,
            waiting=len(streams) - running,
            waiting_prefill_tokens=sum(s.prompt_tokens for s in streams if not s.began),
            kv_used_tokens=round(used * self._kv_tokens),
            kv_capacity_tokens=self._kv_tokens,
            steps=sum(each.steps for each in self._steps),
            step_ms=seen.step_ms,
            prefill_us_per_token=seen.prefill_us_per_token,
            cached_tokens=self._cached_tokens,
        )

    def check(self) -> None:
        if self._failure is None and self._engine is not None and self._engine.errored:
            self._failure = EngineFailed("engine: it failed; its replica is being replaced; send the request again")
        if self._failure is not None:
            raise self._failure

    async def stop(self) -> None:
        self._failure = EngineFailed("engine: it was stopped; a running one is needed; send the request again")
        for stream in tuple(self._streams.values()):
            self._emit(stream, Piece(error=self._failure))
        for task in tuple(self._tasks):
            task.cancel()
        engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.to_thread(engine.shutdown)

    def _load(self) -> None:
        os.environ.update(environment(self._tier, self._accelerator))
        self._tokenizer = ChatTokenizer(Path(self._tier.checkpoint), self.context_tokens)
        try:
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.utils.argparse_utils import FlexibleArgumentParser
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            raise ConfigurationError(
                f"engine: vllm: {error}; the package vllm is needed; install it with pip install 'moray[vllm]'"
            ) from error
        parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
        try:
            self._engine = AsyncLLM.from_engine_args(
                AsyncEngineArgs.from_cli_args(parser.parse_args(list(self._arguments))), stat_loggers=[self._logger]
            )
        except (Exception, SystemExit) as error:  # of any kind and of any of its processes; its parser exits
            raise CheckpointError(
                f"{self._tier.checkpoint}: vLLM cannot start: {error}; see the replica's log; mend the tier's settings "
                "or give another checkpoint"
            ) from error
        config = self._engine.vllm_config
        self._vocab: int = config.model_config.get_vocab_size()
        self._kv_tokens: int = (config.cache_config.num_gpu_blocks - len(self._steps)) * config.cache_config.block_size
        self._end_tokens = _end_tokens(config.model_config)
        self._beside = Beside(self._tier, self._engine)
        self._tokenizer.reserve(self._beside.reserved(self._tier))
        if self._tier.vllm is not None and self._tier.vllm.tool_parser is not None:
            self._read_calls(self._tier.vllm.tool_parser)

    def _read_calls(self, name: str) -> None:
        from vllm.tool_parsers import ToolParserManager

        tokenizer = self._engine.get_tokenizer()
        try:
            self._parser = functools.partial(ToolParserManager.get_tool_parser(name), tokenizer)
            self._parser()  # some refuse tokenizers that lack their tokens
        except Exception as error:
            raise ConfigurationError(
                f"vllm.tool_parser: {name!r}: {error}; a parser of vLLM that knows this checkpoint is allowed; choose "
                "another or leave it out"
            ) from error
        self._bytes_with_special = list(self._tokenizer.bytes_of)
        for text, token in tokenizer.get_added_vocab().items():
            self._bytes_with_special[token] = self._bytes_with_special[token] or text.encode()

    def _logger(self, config: Any, engine: int = 0) -> Steps:
        self._steps.append(Steps(config, engine))
        return self._steps[-1]

    def _admit(self) -> None:
        taken, most = len(self._streams), self._tier.max_running + self._tier.max_waiting
        if taken >= most:
            raise Overloaded(
                f"engine: {taken} requests run or wait; at most {self._tier.max_running} and {self._tier.max_waiting} "
                "are allowed; send it again later",
                # Running streams end one after the other, and each end moves the queue by one.
                retry_after_s=min(60.0, max(1.0, self._stream_s / self._tier.max_running)),
            )

    def _params(self, stream: Stream) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        s, given = stream.generation.sampling, stream.generation.given
        return SamplingParams(
            temperature=s.temperature,
            top_p=s.top_p,
            max_tokens=stream.max_tokens - len(given),
            presence_penalty=s.presence_penalty,
            frequency_penalty=s.frequency_penalty,
            logit_bias=_biases(s, given),
            seed=(s.seed + len(given)) % 2**63,  # or it would draw again what it drew for the given tokens
            logprobs=s.top_logprobs,
            ignore_eos=s.ignore_eos,
            detokenize=False,  # text and stop strings are those of every engine
            output_kind=RequestOutputKind.DELTA,
            structured_outputs=_form(stream.generation) if stream.generation.held else None,
        )

    def _most_tokens(self, generation: Generation) -> int:
        kv_tokens = self._kv_tokens // len(self._steps)
        return most_tokens(generation, vocab=self._vocab, context_tokens=self.context_tokens, kv_tokens=kv_tokens)

    async def _prompt(self, stream: Stream) -> Any:
        """What stands beside its text is measured here, on other threads. Raises ContextTooLong; as vLLM does."""
        from vllm.inputs import tokens_input

        generation = stream.generation
        if not generation.media:
            return tokens_input([*generation.prompt, *generation.given], cache_salt=generation.cache_salt or None)
        given = await asyncio.to_thread(self._beside.prompt, generation)
        (rendered,) = await self._engine.renderer.render_cmpl_async([given])
        ids = rendered["prompt_token_ids"]
        prompt = tuple(ids[: len(ids) - len(generation.given)])
        stream.prompt_tokens, stream.max_tokens = len(prompt), self._most_tokens(replace(generation, prompt=prompt))
        return rendered

    async def _run(self, stream: Stream, params: Any) -> None:
        from vllm.exceptions import VLLMClientError

        generation, began_s = stream.generation, time.perf_counter()
        try:
            prompt = await self._prompt(stream)
            params.max_tokens = stream.max_tokens - len(generation.given)
            outputs = self._engine.generate(
                prompt,
                params,
                f"{generation.request_id}#{next(self._numbers)}",  # of one cancelled just now, the old may still end
                priority=-generation.priority,  # vLLM's lower goes first
            )
            async with contextlib.aclosing(outputs):  # what stops early is aborted
                async for output in outputs:
                    self._take(stream, output)
                    if not stream.open:
                        return
        except RequestError as error:
            self._emit(stream, Piece(error=error))
        except (VLLMClientError, ValueError) as error:
            self._emit(stream, Piece(error=InvalidRequest(f"request: vLLM refuses it: {error}; mend the request")))
        except Exception:
            # What went wrong is for the log alone: clients cannot mend it.
            log.exception("%s: vLLM failed", generation.request_id)
            failure = EngineFailed("engine: it failed; its replica is being replaced; send the request again")
            self._emit(stream, Piece(error=self._failure or failure))
        finally:
            wall_s = time.perf_counter() - began_s
            self._stream_s += 0.1 * (wall_s - self._stream_s)
            self._forget(stream)

    def _take(self, stream: Stream, output: Any) -> None:
        told, times = output.outputs[0], output.metrics
        if told.finish_reason not in (None, "stop", "length"):
            raise EngineFailed(f"engine: vLLM ended a request by {told.finish_reason}; its log says why")
        began = stream.began
        piece = stream.take(
            Step(
                ids=told.token_ids,
                logprobs=told.logprobs,
                ended=told.finish_reason,
                cached_tokens=output.num_cached_tokens or 0,
                queued_s=max(0.0, times.scheduled_ts - times.queued_ts) if times else None,
            )
        )
        if not began:
            self._cached_tokens += stream.cached_tokens
        self._emit(stream, piece)

    def _emit(self, stream: Stream, piece: Piece) -> None:
        """Emit it, if anybody listens yet. The place of what ends is free before the caller hears of it."""
        if not stream.open:
            return
        if piece.last:
            stream.open = False
            self._forget(stream)
        try:
            stream.emit(piece)
        except Exception:
            log.exception("%s: its receiver failed; the stream is cancelled", stream.generation.request_id)
            stream.open = False

    def _forget(self, stream: Stream) -> None:
        """Unless it was cancelled, and its id serves another stream by now."""
        if self._streams.get(stream.generation.request_id) is stream:
            del self._streams[stream.generation.request_id]


def _form(generation: Generation) -> Any:
    """What the answer is held to. Raises InvalidRequest."""
    from vllm.sampling_params import StructuredOutputsParams
    from vllm.v1.structured_output.backend_xgrammar import has_xgrammar_unsupported_json_features

    s = generation.sampling
    param = "tools" if s.json_schema is None else "response_format"
    if generation.given:
        raise InvalidRequest(
            f"{param}: {len(generation.given)} tokens of the answer are given; none are allowed of one that is held to "
            "a form; send the request again from its beginning",
            param=param,
        )
    if not generation.tools:
        return StructuredOutputsParams(json=s.json_schema)
    tag = structural_tag(generation, lambda schema: not has_xgrammar_unsupported_json_features(schema))
    return StructuredOutputsParams(structural_tag=tag)


def _biases(s: Sampling, given: Sequence[int]) -> dict[int, float] | None:
    """Those asked, less the penalties of given tokens: vLLM takes them for a part of the prompt, which pays none."""
    biases = dict(s.logit_bias)
    if s.presence_penalty or s.frequency_penalty:
        for token, n in Counter(given).items():
            biases[token] = biases.get(token, 0.0) - (s.presence_penalty + s.frequency_penalty * n)
    return biases or None


def _end_tokens(model_config: Any) -> frozenset[int]:
    """Those that vLLM stops at: of the configuration, and of generation_config.json."""
    named = [
        getattr(model_config.hf_text_config, "eos_token_id", None),
        model_config.try_get_generation_config().get("eos_token_id"),
    ]
    return frozenset(token for one in named if one is not None for token in (one if isinstance(one, list) else [one]))
