"""POST /v1/embeddings: a chat that is answered with vectors, on the way of every chat."""

from starlette.types import Receive, Scope, Send

from deployments.gateway.chat import ChatCompletions
from deployments.gateway.description import Described
from deployments.gateway.embeddings_wire import EmbeddingsBody, parse_embeddings


class Embeddings:
    """The ASGI endpoint."""

    described = Described(
        body=EmbeddingsBody, headers=ChatCompletions.described.headers, gives="embedding", listing=True
    )

    def __init__(self, chat: ChatCompletions) -> None:
        self._chat = chat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._chat.answer(scope, receive, send, parse=parse_embeddings)
