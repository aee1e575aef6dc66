"""What an engine may be asked for: the same limits, and the same words, for each that computes tokens."""

from cluster.errors import ContextTooLong, InvalidRequest
from cluster.request import Generation

MOST_LOGPROBS = 20  # as in the public API


def most_tokens(generation: Generation, *, vocab: int, context_tokens: int, kv_tokens: int) -> int:
    """What the request may generate at most, given tokens included.

    `kv_tokens`: what the cache holds for one request. Raises ContextTooLong or InvalidRequest where it can never run.
    """
    prompt, s = generation.prompt, generation.sampling
    _check_tokens(generation, vocab)
    if s.top_logprobs is not None and not 0 <= s.top_logprobs <= MOST_LOGPROBS:
        raise InvalidRequest(
            f"top_logprobs: {s.top_logprobs}; 0..{MOST_LOGPROBS} are allowed; choose one of them",
            param="top_logprobs",
        )
    if "" in s.stop:
        raise InvalidRequest("stop: an empty string; text is allowed; leave it out", param="stop")
    left = context_tokens - len(prompt)
    wanted = left if s.max_tokens is None else s.max_tokens
    if left < 1 or wanted > left:
        raise ContextTooLong(
            f"context: {len(prompt)} prompt tokens and {max(1, wanted)} to generate; {context_tokens} tokens are "
            "allowed together; shorten the messages or lower max_tokens",
            param="messages",
        )
    if wanted < 1:
        raise InvalidRequest(f"max_tokens: {wanted}; at least 1 is allowed; raise it", param="max_tokens")
    if len(prompt) + wanted - 1 > kv_tokens:
        raise ContextTooLong(
            f"KV cache: {len(prompt)} prompt tokens and {wanted} to generate; it holds {kv_tokens}; shorten the "
            "messages or lower max_tokens",
            param="messages",
        )
    return wanted


def _check_tokens(generation: Generation, vocab: int) -> None:
    if not generation.prompt:
        raise InvalidRequest("prompt: no tokens; at least one is allowed; send a message", param="messages")
    known, allowed = (*generation.prompt, *generation.given), f"0..{vocab - 1} are allowed; use this model's tokenizer"
    if min(known) < 0 or max(known) >= vocab:
        beyond = next(token for token in known if not 0 <= token < vocab)
        raise InvalidRequest(f"prompt: token {beyond}; {allowed}", param="prompt")
    biased = next((token for token, _ in generation.sampling.logit_bias if not 0 <= token < vocab), None)
    if biased is not None:
        raise InvalidRequest(f"logit_bias: token {biased}; {allowed}", param="logit_bias")
