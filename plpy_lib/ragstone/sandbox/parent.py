"""The backend's end of a child process: one parses users' files, another runs the model.

The backend is never forked: the child starts by exec, with an empty environment, and confines
itself before it touches a document (see `child.py` and `confine.py`). No signal handler is
installed, SIGCHLD is left alone, and only the child's own pid is ever waited for.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from ragstone.errors import DocumentError
from ragstone.sandbox.protocol import (
    REPLY_HEADER,
    Bounds,
    Reply,
    ReplyTooLarge,
    Request,
    decode_reply,
    encode,
    reply_bytes,
)

# A cancel is due within a quarter second; the caller's check is made at least this often.
SLICE_MS = 50
# What an interpreter needs to start on a busy machine; idle it takes 20 to 30 ms.
START_SECONDS = 20.0
# The child's own timer goes first, so that the cause of its death is plain.
GRACE_SECONDS = 1.0
# How long a finished answer may take to cross the socket.
TRANSFER_SECONDS = 20.0
_READ_BYTES = 1 << 18
# One of each folder that may hold what the children import.
_LIBRARIES = ("pypdfium2", "lxml", "tokenizers", "onnxruntime", "numpy")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_CRASHES = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGTRAP)
_STDERR_BYTES = 4_000
_OUT_OF_MEMORY_EXIT = 113
_MEMORY_WORDS = ("bad_alloc", "memory allocation of", "MemoryError", "out of memory", "allocate")


Answer = TypeVar("Answer")


@dataclass(frozen=True)
class _Pending(Generic[Answer]):
    request: Request[Answer]
    started: float
    deadline: float


class _Died(Exception):
    """The child hung up."""


class Sandbox(Generic[Answer]):
    """One child process, kept between requests, replaced when it dies, ages or swells.

    Not for use by two threads. One request is in work at a time: `submit`, then `result`; a child
    serves one kind of request only. `name` is for who looks at the list of processes,
    `library_paths` are the folders that hold the libraries, `readable` further files the child must
    read (those that a request names are added by themselves). The child is replaced after
    `max_requests`, when it keeps more than half of the memory limit, and for another owner's
    request, which a parser that is taken over would see.
    """

    def __init__(
        self,
        *,
        name: str = "extract",
        python: Path | None = None,
        program: Path | None = None,
        library_paths: Sequence[Path] | None = None,
        readable: Sequence[Path] = (),
        max_requests: int = 500,
    ) -> None:
        self._name = name
        self._python = python or default_interpreter()
        self._program = program or Path(__file__).resolve().with_name("child.py")
        paths = default_library_paths() if library_paths is None else library_paths
        self._library_paths = [str(path) for path in paths]
        self._readable = {str(path) for path in readable}
        self._max_requests = max_requests
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._memory_bytes = 0
        self._most_bytes = 0
        self._requests = 0
        self._owner: int | None = None
        self._greeted = False
        self._pending: _Pending[Answer] | None = None
        self._protections: tuple[str, ...] = ()
        self.seconds = 0.0
        """What the last request took: by the child's account, else until it had failed."""

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is none."""
        return self._process.pid if self._process else None

    @property
    def protections(self) -> tuple[str, ...]:
        """What the child said it is confined by; empty before the first result or `start`."""
        return self._protections

    def start(self, check: Callable[[], None], memory_bytes: int = 512 << 20) -> tuple[str, ...]:
        """Start the child if there is none, wait until it is confined, return its protections.

        Raises what `check` raises, and DocumentError sandbox_failed.
        """
        try:
            if self._process is None:
                self._spawn(memory_bytes)
            self._greet(check)
        except _Died:
            raise self._cannot_start() from None
        except BaseException:
            self.close()
            raise
        return self._protections

    def submit(self, request: Request[Answer], fd: int | None, check: Callable[[], None]) -> None:
        """Hand over a request, and return once the child has all of it; `fd` may be closed then.

        `check` is called at least every 50 ms, as in `result`. Raises DocumentError sandbox_failed
        where no child can be started or none takes the request, RuntimeError where the last
        request's result was not yet collected.
        """
        if self._pending:
            raise RuntimeError("the result of the last request was not collected")
        try:
            self._renew(request)
            try:
                self._send(request, fd, check)
            except OSError:  # it died between two requests: that is not this one's doing
                self.close()
                self._renew(request)
                self._send(request, fd, check)
        except OSError:
            raise self._cannot_start() from None
        except BaseException:
            self.close()  # half a request would be taken for the beginning of the next
            raise
        self._requests += 1
        limit = _allowance(request) + (0 if self._greeted else START_SECONDS)
        self._most_bytes = 0
        started = time.monotonic()
        self._pending = _Pending(request, started, started + limit)

    def result(self, check: Callable[[], None]) -> Answer:
        """Wait for the answer to what was handed over last.

        `check` is called at least every 50 ms; whatever it raises is raised after the child was
        killed and reaped. Raises DocumentError for all that is wrong with the document (the
        cause of the child's death included), RuntimeError where nothing was submitted.
        """
        if not self._pending:
            raise RuntimeError("nothing was submitted")
        pending, self._pending = self._pending, None
        self.seconds = 0.0
        try:
            return self._result(pending, check)
        except BaseException:
            self.seconds = self.seconds or time.monotonic() - pending.started
            raise

    def _result(self, pending: _Pending[Answer], check: Callable[[], None]) -> Answer:
        try:
            deadline = pending.deadline
            if not self._greeted:
                self._greet(check)
                deadline = min(deadline, time.monotonic() + _allowance(pending.request))
            reply = self._receive(check, deadline, pending.request.bounds)
            return self._understand(reply, pending.request)
        except _Died:
            raise self._cause_of_death(pending.request) from None
        except DocumentError:
            raise
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Kill the child, if there is one, and reap it. The next `submit` starts another."""
        self._pending = None
        self._end(kill=True)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def _renew(self, request: Request[Answer]) -> None:
        """Have a child that fits the request."""
        readable = {str(path.resolve()) for path in request.readable}
        memory = request.memory_bytes
        if memory != self._memory_bytes or not readable <= self._readable:
            self.close()
        if self._requests and request.owner != self._owner:
            self.close()
        if self._requests >= self._max_requests:
            self.close()
        self._readable |= readable
        self._owner = request.owner
        if self._process is None:
            self._spawn(memory)

    def _spawn(self, memory_bytes: int) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._process = subprocess.Popen(
                [str(self._python), "-I", "-S", "-B", str(self._program), self._name],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={},
                cwd="/",
                close_fds=True,
                # PostgreSQL signals a backend's whole process group: a cancel must not reach
                # the child before the backend has decided what to do.
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise self._cannot_start(str(error)) from None
        finally:
            theirs.close()
        assert self._process.stderr is not None
        os.set_blocking(self._process.stderr.fileno(), False)
        ours.settimeout(SLICE_MS / 1000)
        self._channel = ours
        self._memory_bytes, self._requests, self._greeted = memory_bytes, 0, False
        first = {
            "parent_pid": os.getpid(),
            "memory_bytes": memory_bytes,
            "library_paths": self._library_paths,
            "readable": sorted(self._readable),
        }
        with contextlib.suppress(OSError):  # where it is dead already, the greeting finds out
            ours.sendall(encode(first))

    def _send(self, request: Request[Answer], fd: int | None, check: Callable[[], None]) -> None:
        """Raises OSError where the child is dead or does not read, and what `check` raises."""
        assert self._channel is not None
        rest = memoryview(encode(request.to_dict()))
        fds = [] if fd is None else [fd]
        deadline = time.monotonic() + START_SECONDS
        while rest:
            check()
            try:
                sent = socket.send_fds(self._channel, [rest], fds)
            except TimeoutError:  # nothing could be sent for a slice
                if time.monotonic() > deadline:
                    raise
                continue
            rest, fds = rest[sent:], []
            deadline = time.monotonic() + START_SECONDS

    def _greet(self, check: Callable[[], None]) -> None:
        if self._greeted:
            return
        hello = self._receive(check, time.monotonic() + START_SECONDS, Bounds())
        names = hello.head.get("protections")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise _Died
        self._protections = tuple(names)
        self._greeted = True

    def _receive(self, check: Callable[[], None], deadline: float, bounds: Bounds) -> Reply:
        """One message. Raises _Died, also after killing a child that broke the rules."""
        header = bytes(self._read(REPLY_HEADER.size, check, deadline))
        try:
            size = reply_bytes(header, bounds)
            body = self._read(size, check, time.monotonic() + TRANSFER_SECONDS)
            return decode_reply(header, body, check)
        except ReplyTooLarge as error:
            self.close()
            raise DocumentError(
                "too_large",
                "the document's text is larger than may be handed on",
                detail=str(error),
                hint="Split the document.",
            ) from None
        except (ValueError, RecursionError) as error:
            self.close()
            raise _malformed(f"{type(error).__name__}: {error}") from None

    def _read(self, size: int, check: Callable[[], None], deadline: float) -> bytearray:
        assert self._channel is not None
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        data = bytearray()
        while len(data) < size:
            check()
            if time.monotonic() > deadline:  # also where bytes keep coming, one by one
                self.close()
                raise _timeout()
            if not poll.poll(SLICE_MS):
                self._note_memory()
                continue
            try:
                part = self._channel.recv(min(size - len(data), _READ_BYTES))
            except OSError:
                part = b""
            if not part:
                raise _Died
            data += part
        return data

    def _note_memory(self) -> None:
        """A parser in C that is refused memory just aborts: only its size tells why.

        It was asking for twice what it had, as a growing buffer does: hence 0.45 below.
        """
        with contextlib.suppress(OSError, ValueError, IndexError):
            pages = Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[0]
            self._most_bytes = max(self._most_bytes, int(pages) * _PAGE_BYTES)

    def _understand(self, reply: Reply, request: Request[Answer]) -> Answer:
        resident = reply.head.get("resident_bytes")
        if isinstance(resident, int) and resident > self._memory_bytes // 2:
            self._requests = self._max_requests
        seconds = reply.head.get("seconds")
        self.seconds = seconds if isinstance(seconds, float) and 0 <= seconds < 1e6 else 0.0
        try:
            if "error" in reply.head:
                raise DocumentError.from_dict(reply.head["error"])
            return request.answer(reply)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self.close()
            raise _malformed(str(error)) from None

    def _end(self, *, kill: bool) -> tuple[int, str]:
        """Close the socket, reap the child; return its wait status and last words."""
        process, channel = self._process, self._channel
        self._process = self._channel = None
        self._greeted = False
        if channel:
            channel.close()
        if process is None:
            return 0, ""
        if kill:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        status = _reap(process)
        words = ""
        if process.stderr:
            with contextlib.suppress(OSError):
                words = (os.read(process.stderr.fileno(), 1 << 16)[-_STDERR_BYTES:]).decode(
                    "utf-8", "replace"
                )
            process.stderr.close()
        return status, words

    def _cause_of_death(self, request: Request[Answer]) -> DocumentError:
        greeted = self._greeted
        status, words = self._end(kill=False)
        code = os.waitstatus_to_exitcode(status)
        if not greeted and code >= 0:
            return _start_error(words or f"It exited with status {code}.")
        is_full = -code in _CRASHES and self._most_bytes > 0.45 * request.memory_bytes
        if code == _OUT_OF_MEMORY_EXIT or is_full or any(map(words.__contains__, _MEMORY_WORDS)):
            return _out_of_memory(
                f"It needs more than the {request.memory_bytes // 2**20} MB allowed."
            )
        match -code:
            case signal.SIGXCPU:
                return DocumentError(
                    "cpu_limit",
                    "the document takes more computing time than allowed",
                    detail=f"The limit is {request.cpu_seconds} s of CPU.",
                )
            case signal.SIGALRM:
                return _timeout()
            case signal.SIGKILL:
                return _out_of_memory(
                    "The child process was killed, most likely by the system short of memory.",
                    permanent=False,
                )
            case number if number > 0:
                how = f"was ended by {signal.Signals(number).name}"
            case _:
                how = f"exited with status {code}"
        last = words.strip().splitlines()[-1:] or [""]
        return DocumentError(
            "crashed",
            request.crash,
            detail=f"The child process {how}. {last[0]}".strip(),
            permanent=False,
        )

    def _cannot_start(self, reason: str = "") -> DocumentError:
        words = self._end(kill=True)[1]
        return _start_error(reason or words)


def default_interpreter() -> Path:
    """The interpreter of this very Python, also where Python is embedded in a server."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return Path(sys.base_exec_prefix, "bin", name)


def default_library_paths() -> list[Path]:
    """The folders that this process would import the parsers from; nothing is imported."""
    found = (importlib.util.find_spec(name) for name in _LIBRARIES)
    folders = [Path(spec.origin).parent.parent for spec in found if spec and spec.origin]
    return list(dict.fromkeys(folder.resolve() for folder in folders))


def _reap(process: subprocess.Popen[bytes]) -> int:
    """The wait status of a child that is dead or dying; kills it where it only hung up.

    One that is dying keeps the status it dies with, killed or not.
    """
    patience = time.monotonic() + 0.2
    while True:
        try:
            pid, status = os.waitpid(process.pid, os.WNOHANG)
        except ChildProcessError:
            pid, status = process.pid, 0
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)  # so that Popen need not wait
            return status
        if time.monotonic() > patience:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.001)


def _allowance(request: Request[Any]) -> float:
    return request.most_seconds + GRACE_SECONDS


def _timeout() -> DocumentError:
    return DocumentError(
        "timeout",
        "the document takes longer than allowed",
        detail="It was stopped at the limit wall_seconds.",
        permanent=False,
    )


def _out_of_memory(detail: str, *, permanent: bool = True) -> DocumentError:
    return DocumentError(
        "out_of_memory",
        "the document takes more memory than allowed",
        detail=detail,
        permanent=permanent,
    )


def _malformed(reason: str) -> DocumentError:
    return DocumentError(
        "crashed",
        "the child process answered nonsense for this document",
        detail=reason,
        permanent=False,
    )


def _start_error(words: str) -> DocumentError:
    lines = words.strip().splitlines()
    return DocumentError(
        "sandbox_failed",
        "the process that reads documents cannot be started",
        detail=lines[-1] if lines else "It ended before it was ready.",
        hint="Run the health check; the installation may be incomplete.",
        permanent=False,
    )
