"""Text of pictures, recognised by Tesseract's C library in this process.

The child can start no program, so the library is called. It is loaded for the first page that
needs it: pages that have text cost nothing.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..errors import DocumentError
from .cleaning import is_blank
from .options import Limits, Ocr
from .page import Line, Page

# Tesseract is trained on this resolution, and it keeps the picture of a page small.
DPI = 300
# A page of any size is rendered to no more than this, three times A4: 25 MB in grey, and several
# times that while it is worked on.
MAX_PIXELS = 25_000_000
# The pixels that a picture may have before it is made smaller, at 4 bytes each.
MAX_DECODED_PIXELS = 40_000_000
# A line with less confidence, of 100, is a pattern or a drawing.
_MIN_CONFIDENCE = 40.0
# Sizes are estimated from the heights of rows, which vary by this much in text of one size.
_SAME_SIZE = 0.25
_LIBRARIES = ("libtesseract.so.5", "libtesseract.so.4")
_LEPTONICA = ("liblept.so.5", "libleptonica.so.6")
_AUTOMATIC_LAYOUT, _TEXT_LINE = 3, 2


class Unavailable(Exception):
    """OCR is on but not available. The text says why, `hint` what to do."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.hint = hint


class PageTooSlow(Exception):
    """A page was given up at its time limit."""


class Recogniser:
    """Recognises pages of one document within the time limits of a page and of the document.

    `allow` is called with the seconds that a page may take before each one; it winds up the clock
    that ends a process whose parser does not come back. `recognised` and `given_up` are the pages'
    numbers.
    """

    def __init__(
        self, ocr: Ocr, limits: Limits, allow: Callable[[int], None] = lambda seconds: None
    ) -> None:
        self._ocr = ocr
        self._limits = limits
        self._allow = allow
        self._left = float(limits.ocr_seconds)
        self._engine: Engine | None = None
        self.unavailable: Unavailable | None = None
        self.recognised: list[int] = []
        self.given_up: list[int] = []

    @property
    def languages(self) -> str:
        return self._ocr.languages

    def page(self, number: int, show: Callable[[Engine], tuple[float, float] | None]) -> Page:
        """Page `number` as lines; no lines if it was given up or OCR is not available.

        `show` gives the engine the page's picture and returns its pixels a point and its height in
        points, None where there is no picture.
        """
        page = Page(number, 0.0, [])
        if self.unavailable or self._left <= 0:
            self.given_up.append(number)
            return page
        started = time.monotonic()
        self._allow(self._limits.ocr_page_seconds)
        try:
            self._engine = self._engine or Engine(self._ocr)
            if shown := show(self._engine):
                scale, height = shown
                lines = self._engine.recognise(self._limits.ocr_page_seconds, scale, height)
                page = Page(number, height, lines)
                self.recognised.append(number)
        except Unavailable as reason:
            self.unavailable = reason
            self.given_up.append(number)
        except PageTooSlow:
            self.given_up.append(number)
        finally:
            self._left -= time.monotonic() - started
        return page

    def close(self) -> None:
        """Free the memory of the engine, and restart the clock for the remaining work."""
        if self._engine:
            self._engine.close()
            self._engine = None
            self._allow(0)

    def partial(self) -> str | None:
        """What is missing, in words."""
        if not self.given_up:
            return None
        if self.unavailable:
            return f"{some(self.given_up)} could not be recognised: {self.unavailable}"
        return (
            f"{some(self.given_up)} took longer to recognise than the limits ocr_page_s"
            f" ({self._limits.ocr_page_seconds} s) and ocr_document_s"
            f" ({self._limits.ocr_seconds} s) allow"
        )


class Engine:
    """Tesseract with its languages loaded. Raises Unavailable if that fails."""

    def __init__(self, ocr: Ocr) -> None:
        # The child's limit on processes does not allow threads.
        os.environ["OMP_THREAD_LIMIT"] = "1"
        if ocr.data_folder is None:
            raise Unavailable("Tesseract is not installed", install_hint(ocr.languages))
        self._library = _load(_LIBRARIES)
        if self._library is None:
            raise Unavailable("Tesseract's library cannot be loaded", install_hint(ocr.languages))
        _declare(self._library)
        self._handle = self._library.TessBaseAPICreate()
        data = (ocr.data_folder.encode(), ocr.languages.encode())
        if self._library.TessBaseAPIInit3(self._handle, *data) != 0:
            self._library.TessBaseAPIDelete(self._handle)
            raise Unavailable(
                f"Tesseract cannot load the data for {ocr.languages}", install_hint(ocr.languages)
            )
        self._library.TessBaseAPISetPageSegMode(self._handle, _AUTOMATIC_LAYOUT)

    def show_grey(self, buffer: Any, width: int, height: int, stride: int, dpi: float) -> None:
        """A picture of one byte a pixel; it is copied."""
        self._library.TessBaseAPISetImage(self._handle, buffer, width, height, 1, stride)
        self._library.TessBaseAPISetSourceResolution(self._handle, round(dpi))

    def show_pix(self, pix: Any, dpi: float) -> None:
        """A picture of Leptonica's."""
        self._library.TessBaseAPISetImage2(self._handle, pix)
        self._library.TessBaseAPISetSourceResolution(self._handle, round(dpi))

    def recognise(self, seconds: float, scale: float, height: float) -> list[Line]:
        """The lines of the last picture. Raises PageTooSlow."""
        monitor = self._library.TessMonitorCreate()
        try:
            self._library.TessMonitorSetDeadlineMSecs(monitor, round(1_000 * seconds))
            started = time.monotonic()
            failed = self._library.TessBaseAPIRecognize(self._handle, monitor)
            late = time.monotonic() - started >= seconds
        finally:
            self._library.TessMonitorDelete(monitor)
        try:
            if failed or late:  # asking for the text now would begin anew, without a limit
                raise PageTooSlow
            return _even_sizes(list(self._lines(scale, height)))
        finally:
            self._library.TessBaseAPIClear(self._handle)

    def close(self) -> None:
        self._library.TessBaseAPIEnd(self._handle)
        self._library.TessBaseAPIDelete(self._handle)

    def _lines(self, scale: float, height: float) -> Iterator[Line]:
        library = self._library
        iterator = library.TessBaseAPIGetIterator(self._handle)
        if not iterator:
            return
        try:
            while True:
                text = self._text(iterator)
                confidence = library.TessResultIteratorConfidence(iterator, _TEXT_LINE)
                if confidence >= _MIN_CONFIDENCE and not is_blank(text):
                    left, top, right, bottom = self._box(iterator)
                    yield Line(
                        text,
                        max(1.0, (bottom - top) / scale),
                        left / scale,
                        right / scale,
                        height - bottom / scale,
                        height - top / scale,
                    )
                if not library.TessResultIteratorNext(iterator, _TEXT_LINE):
                    return
        finally:
            library.TessResultIteratorDelete(iterator)

    def _text(self, iterator: int) -> str:
        pointer = self._library.TessResultIteratorGetUTF8Text(iterator, _TEXT_LINE)
        if not pointer:
            return ""
        try:
            text = ctypes.string_at(pointer).decode("utf-8", "replace")
        finally:
            self._library.TessDeleteText(pointer)
        return " ".join(text.split())

    def _box(self, iterator: int) -> tuple[int, int, int, int]:
        edges = [ctypes.c_int() for _ in range(4)]
        page = self._library.TessResultIteratorGetPageIteratorConst(iterator)
        self._library.TessPageIteratorBoundingBox(page, _TEXT_LINE, *map(ctypes.byref, edges))
        left, top, right, bottom = (edge.value for edge in edges)
        return left, top, right, bottom


def _even_sizes(lines: list[Line]) -> list[Line]:
    """Round sizes close to the usual one, because the height of a line depends on its letters."""
    if lines:
        usual = statistics.median(line.size for line in lines)
        for line in lines:
            if abs(line.size - usual) <= _SAME_SIZE * usual:
                line.size = usual
    return lines


class Picture:
    """The pages of a picture file, decoded by Leptonica, which Tesseract itself uses.

    Raises Unavailable where that is missing, DocumentError damaged and too_large.
    """

    def __init__(self, data: bytes, *, is_tiff: bool, languages: str) -> None:
        self._data = data
        self._is_tiff = is_tiff
        library = _load(_LEPTONICA)
        if library is None:
            raise Unavailable("Leptonica's library cannot be loaded", install_hint(languages))
        self._library = library
        library.setMsgSeverity(6)  # it says nothing: what matters is told by the results
        for name in ("pixReadMem", "pixReadMemTiff", "pixScale"):
            getattr(library, name).restype = ctypes.c_void_p
        library.pixScale.argtypes = [ctypes.c_void_p, ctypes.c_float, ctypes.c_float]
        for name in ("pixGetWidth", "pixGetHeight", "pixGetXRes"):
            getattr(library, name).argtypes = [ctypes.c_void_p]

    def has_page(self, index: int) -> bool:
        """Whether there is a page, of any size; raises DocumentError too_large."""
        width, height, other = ctypes.c_int(), ctypes.c_int(), [ctypes.c_int() for _ in range(5)]
        size = ctypes.c_size_t(len(self._data))
        place = [ctypes.byref(width), ctypes.byref(height)]
        rest = [ctypes.byref(each) for each in other]
        if self._is_tiff:
            # …, n, &w, &h, &bps, &spp, &res, &cmap, &format
            failed = self._library.readHeaderMemTiff(self._data, size, index, *place, *rest)
        elif index:
            return False
        else:
            # …, &format, &w, &h, &bps, &spp, &iscmap
            failed = self._library.pixReadHeaderMem(self._data, size, rest[0], *place, *rest[1:4])
        if failed:
            return False
        if width.value * height.value > MAX_DECODED_PIXELS:
            raise DocumentError(
                "too_large",
                "the picture has more pixels than are read",
                detail=f"It has {width.value:,} by {height.value:,};"
                f" {MAX_DECODED_PIXELS:,} altogether are read.",
                hint="Store it with fewer: 300 a printed inch are enough.",
            )
        return True

    def show(self, index: int, engine: Engine) -> tuple[float, float] | None:
        """Give a page to the engine; its pixels a point and its height in points, or None."""
        size = ctypes.c_size_t(len(self._data))
        library = self._library
        if self._is_tiff:
            pix = library.pixReadMemTiff(self._data, size, index)
        else:
            pix = library.pixReadMem(self._data, size)
        if not pix:
            return None
        try:
            pixels = library.pixGetWidth(pix) * library.pixGetHeight(pix)
            if pixels > MAX_PIXELS:
                factor = (MAX_PIXELS / pixels) ** 0.5
                smaller = library.pixScale(pix, factor, factor)
                self._free(pix)
                pix = smaller
                if not pix:
                    return None
            dpi = library.pixGetXRes(pix)
            dpi = dpi if 70 <= dpi <= 2_400 else DPI
            engine.show_pix(pix, dpi)
            return dpi / 72, library.pixGetHeight(pix) * 72 / dpi
        finally:
            self._free(pix)

    def _free(self, pix: int | None) -> None:
        if pix:
            self._library.pixDestroy(ctypes.byref(ctypes.c_void_p(pix)))


def install_hint(languages: str) -> str:
    from .tesseract import packages

    return (
        f"On Debian and Ubuntu: apt-get install {packages(['eng', *languages.split('+')])};"
        " then: select rag.retry(error_code => 'no_text');"
    )


TURN_ON_HINT = (
    "Have its pages recognised: install tesseract-ocr on the server, then: select"
    " rag.set_ocr('eng'); Or run OCR on it, e.g. with ocrmypdf, and replace the file."
)


def no_text(what: str, recogniser: Recogniser | None) -> DocumentError:
    """The error for a document of pictures only, with what to do. `what` names its content."""
    if recogniser is None:
        hint, detail = TURN_ON_HINT, f"{what}, and OCR is off."
    elif recogniser.unavailable:
        hint = recogniser.unavailable.hint
        detail = f"{what}, and OCR is on, but {recogniser.unavailable}."
    elif recogniser.given_up:
        hint = (
            "Raise the limits: select rag.set('ocr_page_s', …);"
            " then: select rag.retry(error_code => 'no_text');"
        )
        detail = f"{what}. Of these {recogniser.partial()}."
    else:
        hint = (
            "If there are words on it, check the languages: select name, ocr from rag.pipelines;"
            " else leave it as it is."
        )
        detail = f"{what}, on which OCR ({recogniser.languages}) has found no words."
    return DocumentError("no_text", "the document holds no text", detail=detail, hint=hint)


def some(numbers: Sequence[int]) -> str:
    """Pages by number, the first ten of them."""
    shown = ", ".join(map(str, numbers[:10])) + (", …" if len(numbers) > 10 else "")
    return f"page {shown}" if len(numbers) == 1 else f"{len(numbers)} pages ({shown})"


def _load(names: tuple[str, ...]) -> Any:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _declare(library: Any) -> None:
    """Declare the types of pointers, so that they are not truncated to int."""
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    places = [ctypes.POINTER(number)] * 4
    for name, result, arguments in (
        ("TessBaseAPICreate", pointer, []),
        ("TessBaseAPIInit3", number, [pointer, text, text]),
        ("TessBaseAPISetPageSegMode", None, [pointer, number]),
        ("TessBaseAPISetImage", None, [pointer, pointer, number, number, number, number]),
        ("TessBaseAPISetImage2", None, [pointer, pointer]),
        ("TessBaseAPISetSourceResolution", None, [pointer, number]),
        ("TessBaseAPIRecognize", number, [pointer, pointer]),
        ("TessBaseAPIGetIterator", pointer, [pointer]),
        ("TessBaseAPIClear", None, [pointer]),
        ("TessBaseAPIEnd", None, [pointer]),
        ("TessBaseAPIDelete", None, [pointer]),
        ("TessMonitorCreate", pointer, []),
        ("TessMonitorSetDeadlineMSecs", None, [pointer, number]),
        ("TessMonitorDelete", None, [pointer]),
        ("TessResultIteratorDelete", None, [pointer]),
        ("TessResultIteratorNext", number, [pointer, number]),
        ("TessResultIteratorGetUTF8Text", pointer, [pointer, number]),
        ("TessResultIteratorConfidence", ctypes.c_float, [pointer, number]),
        ("TessResultIteratorGetPageIteratorConst", pointer, [pointer]),
        ("TessPageIteratorBoundingBox", number, [pointer, number, *places]),
        ("TessDeleteText", None, [pointer]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
