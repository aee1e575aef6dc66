"""How many prompt tokens ride on a decode step: as many as the promised pace leaves room for.

    chunk = clip((tpot - step) / us_per_token, least, most)          step without a chunk, all in ms

A step with a chunk is a pause for every sequence that decodes, and short answers have few tokens to spread it over. So
a fixed chunk that is right for throughput breaks the pace of short answers; with this one no single step is longer than
the promise, as long as the decode step with the least chunk is not. Nobody decoding: the largest chunk, nobody is held
up. Engines with a fixed chunk (chunking "fixed") are told apart by the service.
"""

from cluster.cost import Service

LEAST_TOKENS = 128
MOST_TOKENS = 8192
SLACK_SHARE = 0.95  # of the pace is planned for; the rest is for what the model does not know


def chunk_tokens(service: Service, decoding: int, step_ms: float, us_per_token: float) -> int:
    """Prompt tokens of the next step, beside `decoding` sequences whose step alone takes `step_ms`."""
    if service.chunking == "fixed":
        return service.chunk_tokens
    if decoding == 0:
        return MOST_TOKENS
    room_ms = SLACK_SHARE * service.tpot_ms - step_ms
    return int(min(MOST_TOKENS, max(LEAST_TOKENS, room_ms * 1000 / us_per_token)))
