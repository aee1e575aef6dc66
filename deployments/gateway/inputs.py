"""What a chat has beside text: fetched, decoded in a process apart, measured, and put in its place.

A kind that no tier takes which the chat may go to is refused before anything is fetched. What is wrong with an input is
an InvalidRequest that names its part. How many chats are read at once is bounded, and with it the memory that they
take, and how many wait for it.
"""

import asyncio
import base64
import binascii
import contextlib
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from weakref import WeakValueDictionary

from cluster.errors import InvalidRequest, NotFound, Overloaded, Unavailable
from cluster.family import Family, Plan
from cluster.inputs import MOST_CLIPS, MOST_SENT, Input, Media, Sent
from cluster.request import Chat, Message
from cluster.tiering import Wish
from deployments.gateway.wishes import range_of
from deployments.inputs.look import MOST_CHARS, MOST_READ_BYTES, Found, Look, read
from deployments.video import apart
from deployments.video.fetch import fetch
from deployments.video.fit import refused

MOST_BYTES = 20 << 20  # of one input as it was sent
MOST_FETCHED_BYTES = 64 << 20  # of all inputs of a request
MOST_CHATS = 8  # whose inputs are fetched and read
MOST_OF_ONE = 4  # of them of one key
MOST_AT_ONCE = 2  # inputs that are decoded
MOST_WAITING = 128  # chats, with those that are read
MOST_WAITING_OF_ONE = 32  # of them of one key
FETCH_S = 30.0  # all inputs of a chat
RETRY_S = 5.0
SIDES_PX = {"auto": 2048, "high": 2048, "low": 512}  # as in the API
CLIP_SIDE_PX = 768
_PDF = b"%PDF-"
_PDF_WITHIN = 1024  # bytes: some have a header before theirs
_KINDS: dict[Input, apart.Kind] = {"image": "seen", "audio": "heard", "video": "clip"}
FileOf = Callable[[str, str, int], Awaitable[bytes]]  # owner, id, most bytes


class Inputs:
    """Of one gateway. `file_of`: bytes of a file of /v1/files; it is set before the first chat."""

    def __init__(self) -> None:
        self.file_of: FileOf
        self._chats = asyncio.Semaphore(MOST_CHATS)
        self._free = asyncio.Semaphore(MOST_AT_ONCE)
        self._waiting: Counter[str] = Counter()  # by key
        self._of: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def read(self, chat: Chat, wish: Wish, plan: Plan | None, family: Family, owner: str) -> Chat:
        """The chat with all that it was sent in its messages. Raises InvalidRequest, NotFound, Overloaded, Unavailable,
        and what `range_of` raises of the wish. The wish's prompt_tokens do not count.
        """
        if not chat.sent:
            return chat
        known = replace(wish, prompt_tokens=1)
        range_of(known, plan, family)
        pages = _allowed(known, plan, family)
        others = ", ".join(key for key, tier in family.tiers.items() if "image" in tier.inputs) or "none"
        async with self._turn(owner):
            return _placed(chat, await self._all(chat.sent, owner, pages, others))

    async def _all(self, each: Sequence[Sent], owner: str, pages: bool, others: str) -> list[Found]:
        found: list[Found] = []
        fetched, left_s, now_s = 0, FETCH_S, asyncio.get_running_loop().time
        for sent in each:
            begun_s = now_s()
            try:
                async with asyncio.timeout(left_s):
                    data = await self._bytes(sent, owner)
            except TimeoutError:
                allowed = f"{FETCH_S:.0f} s are allowed for all of a request"
                raise refused(sent.where, "does not come in time", allowed, "upload the files instead") from None
            left_s -= now_s() - begun_s
            fetched += len(data)
            if fetched > MOST_FETCHED_BYTES:
                given = f"{fetched} bytes with those before"
                raise refused(sent.where, given, f"at most {MOST_FETCHED_BYTES} are allowed", "send fewer of them")
            look = Look(
                side_px=CLIP_SIDE_PX if sent.kind == "video" else SIDES_PX[sent.detail],
                form=sent.form,
                name=sent.name,
                pages=pages,
                others=others,
            )
            found.append(await self._found(sent, data, look))
            _bound(found, sent.where)
        return found

    async def _bytes(self, sent: Sent, owner: str) -> bytes:
        if sent.url is not None:
            data = await fetch(sent.url, MOST_BYTES, param=sent.where)
        elif sent.file_id is not None:
            data = await self._stored(sent.file_id, owner, sent.where)
        else:
            data = _decoded(sent.data or "", sent.where)
        if not data:
            raise refused(sent.where, "is empty", "a file with content is allowed", "check what was encoded")
        return data

    async def _stored(self, file_id: str, owner: str, where: str) -> bytes:
        try:
            return await self.file_of(owner, file_id, MOST_BYTES)
        except InvalidRequest as error:
            raise InvalidRequest(f"{where}: {error.message}", param=where) from None
        except NotFound as error:
            raise NotFound(f"{where}: {error.message}", param=where, code=error.code) from None

    async def _found(self, sent: Sent, data: bytes, look: Look) -> Found:
        if sent.kind != "file":
            return await self._apart(_KINDS[sent.kind], data, look, sent.where)
        if _PDF in data[:_PDF_WITHIN]:
            return await self._apart("document", data, look, sent.where)
        return Found(text=_plain(data, sent))

    async def _apart(self, kind: apart.Kind, data: bytes, look: Look, where: str) -> Found:
        await self._free.acquire()
        reading = asyncio.ensure_future(asyncio.to_thread(_read_apart, kind, data, look, where))
        reading.add_done_callback(lambda _: self._free.release())  # of a client that leaves, too, only at its end
        return await asyncio.shield(reading)

    @contextlib.asynccontextmanager
    async def _turn(self, owner: str) -> AsyncIterator[None]:
        """Of a chat. No key has all of them, however slowly its inputs come. Raises Overloaded."""
        of_key, of_all = self._waiting[owner], self._waiting.total()
        if of_key >= MOST_WAITING_OF_ONE or of_all >= MOST_WAITING:
            raise Overloaded(
                f"inputs: {of_key} chats of this key wait to be read, {of_all} of all; {MOST_WAITING_OF_ONE} and "
                f"{MOST_WAITING} may; send it again later",
                retry_after_s=RETRY_S,
            )
        of_one = self._of.setdefault(owner, asyncio.Semaphore(MOST_OF_ONE))
        self._waiting[owner] += 1
        try:
            async with of_one, self._chats:
                yield
        finally:
            self._waiting -= Counter({owner: 1})  # without those at 0


def _allowed(wish: Wish, plan: Plan | None, family: Family) -> bool:
    """Whether the chat may have images beside what it has."""
    try:
        range_of(replace(wish, inputs={**wish.inputs, "image": "file"}), plan, family)
    except InvalidRequest:
        return False
    return True


def _read_apart(kind: apart.Kind, data: bytes, look: Look, where: str) -> Found:
    with tempfile.TemporaryDirectory(prefix="moray-input-") as folder:
        out = Path(folder) / "found"
        try:
            apart.run(kind, data, look, out, where)
            return read(out, where)
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise Unavailable(f"inputs: {why}, of what was sent; try again later") from error


def _decoded(text: str, where: str) -> bytes:
    if len(text) > MOST_BYTES * 4 // 3 + 4:
        raise refused(where, "is too long", f"at most {MOST_BYTES} bytes are allowed", "send a smaller file")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise refused(where, "is no base64", "bytes in base64 are allowed", "encode it anew") from None


def _plain(data: bytes, sent: Sent) -> str:
    """Of a file that is text."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise refused(
            sent.where, "is neither a PDF nor text", "PDF and text in UTF-8 are allowed", "save it as one of them"
        )
    return f"[{sent.name}]\n{text}"


def _bound(found: Sequence[Found], where: str) -> None:
    """Of all inputs of a request together. What a body points at is tokenised, too, and no bound of bodies holds it."""
    media = [one for each in found for one in each.media]
    chars = sum(len(each.text) for each in found)
    if chars > MOST_CHARS:
        given = f"{chars} characters of text with those before"
        raise refused(where, given, f"at most {MOST_CHARS} are allowed", "send a part of it")
    clips = sum(one.kind == "video" for one in media)
    for many, most, what in ((len(media), MOST_SENT, "inputs"), (clips, MOST_CLIPS, "clips")):
        if many > most:
            raise refused(where, f"{many} {what} with those before", f"{most} are allowed", "send fewer of them")
    size = sum(one.size_bytes for one in media)
    if size > MOST_READ_BYTES:
        given = f"{size} bytes once decoded, with those before"
        raise refused(where, given, f"at most {MOST_READ_BYTES} are allowed", "send fewer or smaller ones")


def _placed(chat: Chat, found: Sequence[Found]) -> Chat:
    messages = list(chat.messages)
    for index in {sent.message for sent in chat.sent}:
        parts = [(sent.at, one) for sent, one in zip(chat.sent, found, strict=True) if sent.message == index]
        messages[index] = _filled(messages[index], parts)
    return replace(chat, messages=tuple(messages), sent=())


def _filled(message: Message, parts: Sequence[tuple[int, Found]]) -> Message:
    """`parts`: in the order in which they stand in its text."""
    texts: list[str] = []
    media: list[Media] = []
    taken = length = 0
    for at, found in parts:
        texts += (message.content[taken:at], found.text)
        start = length + at - taken
        media += (replace(one, at=start + one.at) for one in found.media)
        taken, length = at, start + len(found.text)
    return replace(message, content="".join((*texts, message.content[taken:])), media=tuple(media))
