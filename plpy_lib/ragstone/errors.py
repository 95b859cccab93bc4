"""The one error a user sees on a document."""

from __future__ import annotations

import re
from typing import Any, Literal

Stage = Literal["read", "extract", "chunk", "embed", "store"]
STAGES: tuple[Stage, ...] = ("read", "extract", "chunk", "embed", "store")

_CODE = re.compile(r"[a-z][a-z_]{1,39}")

# Text in an error can come from a hostile file; the ledger that keeps it should not grow with it.
MAX_TEXT = 2_000

# The document is well, but more than a setting allows: it is rejected, not failed.
_LIMITS = frozenset(
    {
        "over_quota",
        "too_large",
        "too_many_chunks",
        "too_many_pages",
        "too_much_text",
        "type_not_allowed",
    }
)

_DEFAULT_HINT: dict[str, str] = {
    "cpu_limit": "Split the document, or raise the CPU limit if you trust it.",
    "crashed": "Open and save the document anew in the program that made it, then try again.",
    "damaged": "Open the document, save it anew, and replace the file.",
    "encrypted": "Save a copy without a password and replace the file.",
    "out_of_memory": "Split the document, or raise the memory limit if you trust it.",
    "timeout": "Split the document, or raise the time limit if you trust it.",
    "unsupported": "Convert the document to PDF, DOCX, HTML or plain text.",
}


class DocumentError(Exception):
    """Why one document could not be brought in; never a fault of the queue or of another document.

    `code` is a short snake_case word to group and filter by, `message` says what happened,
    `detail` why, `hint` what to do next. `permanent` is true where the same bytes with the same
    limits would fail again, so that a retry is only wasted work.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        detail: str = "",
        hint: str = "",
        permanent: bool = True,
        stage: Stage = "extract",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = _bounded(message)
        self.detail = _bounded(detail)
        self.hint = _bounded(hint or _DEFAULT_HINT.get(code, ""))
        self.permanent = permanent
        self.stage: Stage = stage

    @property
    def failure(self) -> Literal["transient", "permanent", "rejected"]:
        """What becomes of the job: tried again, dead, or dead for a limit that can be raised."""
        if self.code in _LIMITS:
            return "rejected"
        return "permanent" if self.permanent else "transient"

    def __str__(self) -> str:
        return self.message

    def __repr__(self) -> str:
        return f"DocumentError({self.code!r}, {self.message!r}, detail={self.detail!r})"

    def to_dict(self) -> dict[str, Any]:
        """The form in which the error crosses from the child to the backend."""
        return {
            "code": self.code,
            "message": self.message,
            "detail": self.detail,
            "hint": self.hint,
            "permanent": self.permanent,
            "stage": self.stage,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DocumentError:
        """Rebuild the error; raises ValueError where the child did not keep to the form."""
        texts = [data.get(key) for key in ("code", "message", "detail", "hint")]
        stage = data.get("stage")
        if not all(isinstance(text, str) for text in texts) or stage not in STAGES:
            raise ValueError("not a document error")
        code, message, detail, hint = texts
        if not _CODE.fullmatch(str(code)):
            raise ValueError("not the code of an error")
        return cls(
            str(code),
            str(message),
            detail=str(detail),
            hint=str(hint),
            permanent=bool(data.get("permanent")),
            stage=stage,
        )


def _bounded(text: str) -> str:
    """PostgreSQL refuses NULs and lone surrogates, in an error message too."""
    clean = text.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")
    return clean if len(clean) <= MAX_TEXT else clean[: MAX_TEXT - 1] + "…"
