"""What a request may need of its plan's limits, before anybody knows what it takes. Of a chat:

    tokens = prompt + answer     prompt: estimated; answer: max_tokens, else GUESSED_TOKENS; within the context
    gpu_s, usd                   of so many tokens, by the cost model and the list price of the tier asked

Of several answers each takes a place, its tokens, and the GPU-seconds of reading its prompt; the prompt's tokens and
their price count once.

Who names no max_tokens is not refused for a guess: it is cut to what the limit ever grants, and an answer that takes
more leaves a debt. An answer is held to the plan's context in any case.

Of a video: its seconds and their list price, and the GPU-seconds of its steps by the cost model. It takes no place: its
request is over when the job is accepted, and jobs may wait for hours. GPU-seconds are cut to what the limit ever
grants: a video that needs more than a minute's worth is rendered, and leaves a debt at its end.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from cluster.errors import ContextTooLong
from cluster.family import Family, Plan, Video
from cluster.limits import Currency
from cluster.request import Chat
from cluster.usage import NUSD, Usage, chat_gpu_s, price_of, tokens_nusd, video_nusd

GUESSED_TOKENS = 4096


def within(plan: Plan | None, chat: Chat, prompt_tokens: int) -> Chat:
    """The chat, its answer held to the plan's context. `prompt_tokens`: estimated. Raises ContextTooLong."""
    most = plan.context_tokens if plan else None
    if most is None:
        return chat
    asked = chat.sampling.max_tokens
    if prompt_tokens + (asked or 1) > most:
        where = "input" if chat.embeds else "prompt" if chat.prompts else "messages"
        raise ContextTooLong(
            f"{where}: about {prompt_tokens} tokens, and {asked or 1} of the answer; this key's plan allows {most} "
            "together; shorten them, lower max_tokens, or change the plan",
            param=where,
        )
    return chat if asked else replace(chat, sampling=replace(chat.sampling, max_tokens=most - prompt_tokens))


def chat_needs(
    family: Family, plan: Plan, chat: Chat, tier: str, prompts: Sequence[int], factor: float
) -> Mapping[Currency, float]:
    """Of each limit that the plan has. `chat` as it was asked; `tier`: the one asked; `factor`: of its price.

    `prompts`: tokens of each.
    """
    contexts = family.tiers[tier].context_tokens, plan.context_tokens or family.tiers[tier].context_tokens
    given = chat.sampling.max_tokens
    wanted = GUESSED_TOKENS if given is None else given
    pairs = [(prompt, min(wanted, max(1, min(contexts) - prompt))) for prompt in prompts]
    needed: dict[Currency, float] = {}
    for limit in plan.limits:
        amount = _needed(limit.currency, family, chat, tier, pairs)
        amount *= factor if limit.currency == "usd" else 1.0
        guessed = given is None and limit.currency != "concurrent"  # how many places it takes is known
        needed[limit.currency] = min(amount, limit.amount) if guessed else amount
    return needed


def _needed(currency: Currency, family: Family, chat: Chat, tier: str, pairs: Sequence[tuple[int, int]]) -> float:
    """`pairs`: tokens of each prompt, and of an answer to it."""
    read, answers = sum(prompt for prompt, _ in pairs), chat.choices * sum(answer for _, answer in pairs)
    match currency:
        case "requests":
            return 1.0
        case "concurrent":
            return float(chat.answers)
        case "tokens":
            return float(read + answers)
        case "gpu_s":
            return chat.choices * sum(chat_gpu_s(family, tier, prompt, answer) for prompt, answer in pairs)
        case "usd":
            return tokens_nusd(price_of(family, chat.model, tier), read, answers) / NUSD
        case "video_s":
            return 0.0


def videos_need(video: Video, plan: Plan, jobs: Sequence[tuple[int, float]]) -> tuple[Mapping[Currency, float], ...]:
    """Of each limit that the plan has, for each of the jobs that one request begins: their seconds and GPU-seconds."""
    allowed = {limit.currency: limit.amount for limit in plan.limits}
    found, left_gpu_s = [], allowed.get("gpu_s", 0.0)
    for seconds, gpu_s in jobs:
        within_gpu_s = min(gpu_s, math.floor(left_gpu_s * 1e6) / 1e6)  # sums of doubles exceed no limit by a rounding
        left_gpu_s -= within_gpu_s
        needed: dict[Currency, float] = {
            "requests": 1.0,
            "gpu_s": within_gpu_s,
            "video_s": float(seconds),
            "usd": video_nusd(video, seconds) / NUSD,
        }
        found.append({key: amount for key, amount in needed.items() if key in allowed})
    return tuple(found)


def taken(used: Usage) -> Mapping[Currency, float]:
    """What an event of the ledger takes of limits."""
    tokens = float(used.input_tokens + used.output_tokens)
    return {
        "requests": 1.0,
        "tokens": tokens,
        "gpu_s": used.gpu_s,
        "video_s": used.video_s,
        "usd": used.price_nusd / NUSD,
    }
