"""POST /v1/completions. But for its body and what is rendered, all of it is a chat's."""

from starlette.types import Receive, Scope, Send

from deployments.gateway.chat import ChatCompletions
from deployments.gateway.completion_request import CompletionBody, parse_completion
from deployments.gateway.description import JSON, SSE, Described


class Completions:
    """The ASGI endpoint."""

    described = Described(
        body=CompletionBody, headers=ChatCompletions.described.headers, gives="text_completion", media=(JSON, SSE)
    )

    def __init__(self, chat: ChatCompletions) -> None:
        self._chat = chat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._chat.answer(scope, receive, send, parse=parse_completion)
