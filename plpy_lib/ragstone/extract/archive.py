"""ZIP archives, checked before anything in them is inflated."""

from __future__ import annotations

import io
import zipfile

from ..errors import DocumentError
from .options import Limits

# Small, repetitive parts compress better than the ratio allows. They are harmless.
_SMALL_BYTES = 1_000_000


def open_archive(data: bytes, limits: Limits) -> zipfile.ZipFile:
    """Return the archive if the sizes that it declares are within the limits.

    A member that holds more than it declares is cut there by zipfile and fails its checksum.
    Raises DocumentError: damaged, encrypted, and too_large naming the limit passed.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise DocumentError(
            "damaged", "the document is damaged", detail=f"Its archive cannot be read: {error}"
        ) from None
    if len(members) > limits.max_members:
        raise _over("max_members", f"{len(members):,} members", f"{limits.max_members:,}")
    if any(member.flag_bits & 1 for member in members):
        raise DocumentError(
            "encrypted",
            "the document is protected by a password",
            detail="Members of its archive are encrypted.",
        )
    inflated = sum(member.file_size for member in members)
    if inflated > limits.max_inflated_bytes:
        raise _over(
            "max_inflated_bytes", f"{inflated:,} bytes inflated", f"{limits.max_inflated_bytes:,}"
        )
    for member in members:
        ratio = member.file_size / max(1, member.compress_size)
        if member.file_size > _SMALL_BYTES and ratio > limits.max_ratio:
            raise _over(
                "max_ratio", f"a member inflated {ratio:,.0f} times", f"{limits.max_ratio:,}"
            )
    return archive


def _over(limit: str, has: str, allowed: str) -> DocumentError:
    return DocumentError(
        "too_large",
        f"the document's archive is over the limit {limit}",
        detail=f"It has {has}; the limit is {allowed}.",
        hint="Save the document anew; if it is genuine, raise the limit.",
    )
