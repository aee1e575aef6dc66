"""Documents for a language model: the text of a PDF page by page. Run in a process of its own: see apart.py.

PDFium reads. A page without text, as scans are, becomes a picture where the tier takes pictures; else it is marked,
and a document without any text is refused.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.inputs import MOST_SENT, Media
from deployments.inputs.look import MOST_CHARS, Found, Look, write
from deployments.inputs.pictures import MOST_LENGTHWISE, of
from deployments.video.fit import refused

MOST_PAGES = 1000
MOST_PICTURES = MOST_SENT  # of pages, in a document
PX_PER_POINT = 2.0  # 144 pixels an inch
_FORMAT, _PASSWORD, _SECURITY = 3, 4, 5  # of PDFium's FPDF_ERR_*
_NO_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


def document(data: bytes, look: Look, out: Path, where: str) -> int:
    """Its text with a mark before each page. Raises InvalidRequest; OSError where the disk does."""
    pdf = _opened(data, where)
    try:
        pages = len(pdf)
        if not 0 < pages <= MOST_PAGES:
            raise refused(where, f"has {pages} pages", f"1 to {MOST_PAGES} are allowed", "send a part of it")
        return write(_found(pdf, look, where), out, where)
    finally:
        pdf.close()


def _opened(data: bytes, where: str) -> Any:
    import pypdfium2

    try:
        return pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if error.err_code in (_PASSWORD, _SECURITY):
            raise refused(
                where, "is encrypted", "a PDF that opens without a password is allowed", "save it without one"
            ) from None
        raise refused(where, "is no PDF that can be read", "a whole PDF is allowed", "save it anew") from None


def _found(pdf: Any, look: Look, where: str) -> Found:
    texts = _texts(pdf, where)
    if not any(texts) and not look.pages:
        raise refused(
            where,
            "has no text, its pages are pictures",
            f"tiers that take pictures of pages are {look.others}",
            "name one of them, or send text" if look.others != "none" else "send text",
        )
    told: list[str] = []
    media: list[Media] = []
    at = 0
    for index, text in enumerate(texts):
        told.append(f"[{look.name}, page {index + 1} of {len(texts)}]\n")
        at += len(told[-1])
        if not text and look.pages:
            if len(media) == MOST_PICTURES:
                text = "(a picture, left out: there are too many)"
            else:
                media.append(_picture(pdf, index, look, at, where))
        told.append((text or ("" if look.pages else "(no text)")) + "\n")
        at += len(told[-1])
    return Found(text="".join(told).removesuffix("\n"), media=tuple(media))


def _texts(pdf: Any, where: str) -> Sequence[str]:
    import pypdfium2

    texts: list[str] = []
    chars = 0
    for index in range(len(pdf)):
        try:
            page = pdf[index]
            text = page.get_textpage().get_text_bounded()
            page.close()
        except pypdfium2.PdfiumError:
            text = ""  # of one page that is broken; others may be whole
        texts.append(_NO_TEXT.sub("", text.replace("\r\n", "\n")).strip())
        chars += len(texts[-1])
        if chars > MOST_CHARS:
            raise refused(where, f"has more than {MOST_CHARS} characters", "so many are allowed", "send a part of it")
    return texts


def _picture(pdf: Any, index: int, look: Look, at: int, where: str) -> Media:
    import pypdfium2

    given = f"page {index + 1} cannot be drawn"
    try:
        page = pdf[index]
        width, height = page.get_size()
        if not 0 < max(width, height) <= MOST_LENGTHWISE * min(width, height):
            raise refused(
                where, f"page {index + 1} is {width:g} x {height:g} points", "other shapes are allowed", "cut it"
            )
        scale = min(PX_PER_POINT, look.side_px / max(width, height))
        drawn = page.render(scale=scale, may_draw_forms=False).to_pil()
        page.close()
    except (pypdfium2.PdfiumError, ValueError):
        raise refused(where, given, "whole pages are allowed", "save it anew") from None
    return of(drawn, look.side_px, at)
