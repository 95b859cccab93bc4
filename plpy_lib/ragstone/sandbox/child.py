"""The program that reads one document after another, or embeds texts, and can do nothing else.

Started by `parent.py` as `python -I -S -B child.py NAME`, its socket as standard input. It talks
only over that socket: see `protocol.py`.
"""

from __future__ import annotations

import array
import json
import mimetypes
import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:  # nothing of the package may be imported before the limits are set
    from collections.abc import Sequence

    import numpy as np

    from ragstone.errors import DocumentError
    from ragstone.extract.model import Extracted
    from ragstone.extract.ocr import Recogniser
    from ragstone.models.port import EmbeddingModel, ModelSpec
    from ragstone.reading.chunk import Similarities
    from ragstone.reading.passages import Extraction
    from ragstone.sandbox.protocol import ExtractRequest, Reply

OUT_OF_MEMORY_EXIT = 113


def main() -> NoReturn:
    """Confine this process, then serve until the other end hangs up."""
    # The backend may have had signals blocked or ignored when it started this process.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGALRM, signal.SIGXCPU, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    channel = socket.socket(fileno=os.dup(0))
    # Nobody reads what libraries write there until this process ends: the rest of it is dropped.
    os.set_blocking(2, False)
    first = json.loads(receive(channel)[0])
    package = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(package.parent), *first["library_paths"]]
    from ragstone.sandbox.confine import confine

    readable = [str(package), *first["library_paths"], *first["readable"]]
    # Opened now, since nothing in /proc can be afterwards. getrusage is no help: across vfork and
    # exec its peak is the parent's, shared buffers included.
    statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    protections = confine(first["memory_bytes"], first["parent_pid"], readable)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    mimetypes.knownfiles.clear()  # the system's may not be read
    greet(channel, {"protections": protections})
    serve(channel, statm)


def serve(channel: socket.socket, statm: int) -> NoReturn:
    """Requests, one by one; `statm` is the open file in which the kernel counts our pages."""
    from ragstone.sandbox.confine import allow_time, stop_time

    while True:
        body, fd = receive(channel)
        message = json.loads(body)
        allow_time(message["cpu_seconds"], message["wall_seconds"])
        started = time.monotonic()
        try:
            reply = embed(message) if message["kind"] == "embed" else read(message, take_all(fd))
        except MemoryError:
            # Nothing can be relied on now, not even that the answer could be put together.
            os._exit(OUT_OF_MEMORY_EXIT)
        pages = int(os.pread(statm, 200, 0).split()[1])
        reply.head["seconds"] = time.monotonic() - started
        reply.head["resident_bytes"] = pages * resource.getpagesize()
        data = encode_or_die(reply)
        stop_time()
        channel.sendall(data)


def read(message: dict[str, Any], data: bytes) -> Reply:
    """Extract and chunk one document; every failure but want of memory becomes an answer."""
    # openpyxl takes it up where it finds it; its threads would die of the limit on processes.
    sys.modules.setdefault("numpy", None)  # type: ignore[arg-type]
    from ragstone.errors import DocumentError, Stage
    from ragstone.extract import extract
    from ragstone.models.port import ModelError, document_error
    from ragstone.sandbox.protocol import ExtractRequest, extraction_to_reply

    stage: Stage = "extract"
    try:
        request = ExtractRequest.from_dict(message)
        found = extract(data, request.file_name, request.limits, recogniser(request))
        del data
        stage = "chunk"
        return extraction_to_reply(passages(found, request))
    except MemoryError:
        raise
    except DocumentError as error:
        return failure(error)
    except ModelError as error:
        return failure(document_error(error, request.model, stage))
    except Exception as error:
        code = "damaged" if stage == "extract" else "internal"
        what = "cannot be read" if stage == "extract" else "could not be split into passages"
        detail = f"{type(error).__name__}: {error}"
        return failure(DocumentError(code, f"the document {what}", detail=detail, stage=stage))


def failure(error: DocumentError) -> Reply:
    from ragstone.sandbox.protocol import Reply

    return Reply({"error": error.to_dict()})


def embed(message: dict[str, Any]) -> Reply:
    """The vectors of some texts; every failure but want of memory becomes an answer."""
    from ragstone.errors import DocumentError
    from ragstone.models.port import ModelError, document_error, vector_literal
    from ragstone.sandbox.protocol import EmbedRequest, Reply

    try:
        request = EmbedRequest.from_dict(message)
        vectors = embedder(request.model).embed_passages(request.texts)
        return Reply({}, texts=[vector_literal(vector) for vector in vectors])
    except MemoryError:
        raise
    except ModelError as error:
        return failure(document_error(error, request.model, "embed"))
    except Exception as error:
        code, what = "internal", "the document's text could not be embedded"
        detail = f"{type(error).__name__}: {error}"
    hint = "This is a fault of the installation or of ragstone: select * from rag.check();"
    return failure(
        DocumentError(code, what, detail=detail, hint=hint, permanent=False, stage="embed")
    )


def recogniser(request: ExtractRequest) -> Recogniser | None:
    """What recognises pictures; each page begins the document's time anew."""
    from ragstone.extract.ocr import Recogniser
    from ragstone.sandbox.confine import allow_time

    limits = request.limits

    def allow(seconds: int) -> None:
        allow_time(limits.cpu_seconds + seconds, limits.wall_seconds + seconds)

    return Recogniser(request.ocr, limits, allow) if request.ocr else None


def passages(found: Extracted, request: ExtractRequest) -> Extraction:
    """Split what was extracted; raises DocumentError too_many_chunks, no_text, and ModelError."""
    from ragstone.errors import DocumentError
    from ragstone.models import providers
    from ragstone.reading.chunk import chunk
    from ragstone.reading.passages import Extraction

    title = request.title or found.title
    counter = providers.token_counter(request.model)
    compare = comparer(request) if request.chunk_spec.strategy == "semantic" else None
    chunks = chunk(found.blocks, request.chunk_spec, counter, title, compare)
    if len(chunks) > request.limits.max_chunks:
        raise DocumentError(
            "too_many_chunks",
            "the document makes more chunks than the limit max_chunks",
            detail=f"It makes {len(chunks):,}; the limit is {request.limits.max_chunks:,}.",
            hint="Split the document, enlarge the chunks, or raise the limit.",
            stage="chunk",
        )
    return Extraction(
        mime_type=found.mime_type,
        title=title,
        author=found.author,
        language=request.language or found.language,
        created=found.created,
        metadata=found.metadata,
        pages=found.pages,
        partial=found.partial,
        chunks=tuple(chunks),
    )


def embedder(model: ModelSpec) -> EmbeddingModel:
    """The model, loaded once; raises ModelUnavailable."""
    from ragstone.models import providers

    # It is kept from openpyxl alone.
    if sys.modules.get("numpy", True) is None:
        del sys.modules["numpy"]
    return providers.embedder(model)


def comparer(request: ExtractRequest) -> Similarities:
    """What tells how similar sentences are; each batch of them begins the document's time anew."""
    from ragstone.reading.similarity import similarities
    from ragstone.sandbox.confine import allow_time

    def embed(sentences: Sequence[str]) -> np.ndarray:
        allow_time(request.limits.cpu_seconds, request.limits.wall_seconds)
        return model.embed_passages(sentences, truncate=True)

    model = embedder(request.model)
    return lambda runs: similarities(runs, embed)


def take_all(fd: int | None) -> bytes:
    """The document; closes its descriptor, so that no parser maps what it holds as code."""
    if fd is None:
        return b""
    parts = []
    position = 0
    try:
        while part := os.pread(fd, 1 << 24, position):
            parts.append(part)
            position += len(part)
    finally:
        os.close(fd)
    return b"".join(parts)


def encode_or_die(reply: Reply) -> bytes:
    from ragstone.sandbox.protocol import encode_reply

    try:
        return encode_reply(reply)
    except MemoryError:
        os._exit(OUT_OF_MEMORY_EXIT)


def greet(channel: socket.socket, message: dict[str, Any]) -> None:
    """A reply without numbers and texts, put together without the package: it loads slowly."""
    body = json.dumps(message).encode()
    channel.sendall(len(body).to_bytes(4, "big") + bytes(12) + body)


def receive(channel: socket.socket) -> tuple[bytes, int | None]:
    """One message and the descriptor that came with it; exits when the other end has hung up."""
    handles = array.array("i")
    head, ancillary, _, _ = channel.recvmsg(4, socket.CMSG_LEN(handles.itemsize))
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            handles.frombytes(data[: handles.itemsize])
    if not head:
        os._exit(0)
    head += receive_exactly(channel, 4 - len(head))
    body = receive_exactly(channel, int.from_bytes(head, "big"))
    return body, handles[0] if handles else None


def receive_exactly(channel: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = channel.recv(size)
        if not part:
            os._exit(0)
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


if __name__ == "__main__":
    main()
