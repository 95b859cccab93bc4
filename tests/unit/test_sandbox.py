"""The child process: what hostile input costs, and that nothing is left behind."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from fake_models import onnx_model
from fake_models import word_model as a_word_model

from ragstone.errors import DocumentError
from ragstone.extract.options import Limits
from ragstone.models.onnx import Embedder
from ragstone.models.port import ModelSpec, vector_literal
from ragstone.reading.chunk import Chunk
from ragstone.reading.passages import Extraction
from ragstone.sandbox import parent
from ragstone.sandbox.parent import Sandbox, default_interpreter, default_library_paths
from ragstone.sandbox.protocol import (
    REPLY_HEADER,
    EmbedRequest,
    ExtractRequest,
    Reply,
    decode_reply,
    encode_reply,
    extraction_to_reply,
)
from ragstone.stores.column import OpenContent

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "plpy_lib"
MODEL_DIR = Path(os.environ.get("RAGSTONE_MODEL_DIR", REPOSITORY / "build" / "model"))
QUICK = Limits(cpu_seconds=2, wall_seconds=3)


def nothing() -> None:
    pass


@pytest.fixture(scope="session")
def word_model(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """A tokenizer of single words; which ones does not matter here."""
    return a_word_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as box:
        yield box
    assert box.pid is None


Run = Callable[..., Extraction]


@pytest.fixture
def run(sandbox: Sandbox, word_model: ModelSpec) -> Run:
    def extract(
        data: bytes,
        name: str = "a.txt",
        check: Callable[[], None] = nothing,
        limits: Limits = Limits(),
    ) -> Extraction:
        submit(sandbox, word_model, data, name, limits)
        return sandbox.result(check)

    return extract


def submit(sandbox: Sandbox, word_model: ModelSpec, data: bytes, name: str, limits: Limits) -> None:
    with OpenContent(data).snapshot(10**9, nothing) as copy:
        sandbox.submit(ExtractRequest(name, word_model, limits), copy.fd, nothing)


def is_gone(pid: int) -> bool:
    """True only if it was reaped, too: a zombie still has an entry."""
    return not Path(f"/proc/{pid}").exists()


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


# A child that does what a document says, to see what the kernel makes of it. It confines itself
# and talks with the very code of the real one.
FAULTY = """
import ctypes, importlib.util, json, os, socket, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("child", {child!r})
child = importlib.util.module_from_spec(spec)
spec.loader.exec_module(child)

def read(message, data):
    code = data.decode()
    scope = {{"os": os, "sys": sys, "ctypes": ctypes, "socket": socket, "time": time}}
    exec(code, scope)
    content = json.dumps(scope.get("found"))
    from ragstone.sandbox.protocol import Reply
    document = {{"mime_type": "text/plain", "metadata": {{}}}}
    return Reply({{"document": document}}, (1, None), (content, None, None))

child.read = read
child.__file__ = {child!r}
child.main()
"""


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[Sandbox]:
    program = tmp_path / "faulty.py"
    program.write_text(FAULTY.format(child=str(PACKAGE / "ragstone" / "sandbox" / "child.py")))
    with Sandbox(program=program) as box:
        yield box


@pytest.fixture
def act(faulty: Sandbox, word_model: ModelSpec) -> Callable[..., object]:
    """Run code in the confined child and return what it put into `found`."""

    def perform(code: str, limits: Limits = QUICK, check: Callable[[], None] = nothing) -> object:
        submit(faulty, word_model, textwrap.dedent(code).encode(), "x", limits)
        return json.loads(faulty.result(check).chunks[0].content)

    return perform


def failure(action: Callable[[], object]) -> DocumentError:
    with pytest.raises(DocumentError) as caught:
        action()
    assert caught.value.message
    assert caught.value.detail
    return caught.value


# --- the ordinary ------------------------------------------------------------------------------


def test_a_text_becomes_passages(run: Run) -> None:
    found = run(b"One fine day.\n\nAnother one.", "notes.txt")
    assert found.mime_type == "text/plain"
    assert [chunk.content for chunk in found.chunks] == ["One fine day.\n\nAnother one."]
    assert found.chunks[0].char_count == 27
    assert found.chunks[0].token_count == 7


def test_the_child_serves_many_documents_and_is_replaced_when_old(word_model: ModelSpec) -> None:
    pids = []
    with Sandbox(max_requests=3) as box:
        for number in range(7):
            submit(box, word_model, b"text %d" % number, "a.txt", Limits())
            pids.append(box.pid)
            assert box.result(nothing).chunks[0].content == f"text {number}"
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 1]
    assert all(is_gone(pid) for pid in pids if pid)


def test_a_child_that_swelled_is_replaced(faulty: Sandbox, act: Callable[..., object]) -> None:
    act("found = 1")
    pid = faulty.pid
    act("sys.kept = bytearray(b'x') * 300_000_000")
    assert faulty.pid == pid
    act("found = 1")
    assert faulty.pid != pid


# A child that reads the first message and then nothing more.
DEAF = """
import json, socket, sys, time
channel = socket.socket(fileno=0)
size = int.from_bytes(channel.recv(4, socket.MSG_WAITALL), "big")
channel.recv(size, socket.MSG_WAITALL)
time.sleep(600)
"""


def test_a_cancel_interrupts_a_request_that_the_child_does_not_take(tmp_path: Path) -> None:
    program = tmp_path / "deaf.py"
    program.write_text(DEAF)
    calls = 0

    def cancel_later() -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt

    request = EmbedRequest(onnx_model(MODEL_DIR), ["text " * 1_000] * 1_000, wall_seconds=60)
    with Sandbox(program=program) as box:
        with pytest.raises(KeyboardInterrupt):
            box.submit(request, None, cancel_later)
        assert box.pid is None, "half a request is with a child that nobody uses again"


def test_a_child_that_takes_no_request_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parent, "START_SECONDS", 0.2)
    program = tmp_path / "deaf.py"
    program.write_text(DEAF)
    request = EmbedRequest(onnx_model(MODEL_DIR), ["text " * 1_000] * 1_000, wall_seconds=60)
    with Sandbox(program=program) as box:
        error = failure(lambda: box.submit(request, None, nothing))
    assert (error.code, error.permanent) == ("sandbox_failed", False)


def test_a_request_larger_than_the_socket_holds_arrives_whole(act: Callable[..., object]) -> None:
    """In many parts, as the child reads it."""
    with Sandbox(name="embed") as model:
        texts = ["word"] * 200_000
        model.submit(EmbedRequest(onnx_model(MODEL_DIR), texts, wall_seconds=0.001), None, nothing)
        assert failure(lambda: model.result(nothing)).code == "timeout"


def test_extraction_goes_on_while_the_worker_embeds(sandbox: Sandbox, word_model: ModelSpec) -> None:
    """Also an answer larger than a socket's buffer, collected long after it was ready."""
    text = b"many words here. " * 25_000
    limits = replace(QUICK, wall_seconds=4, cpu_seconds=10)
    submit(sandbox, word_model, text, "a.txt", limits)
    time.sleep(4.5)
    assert sum(chunk.char_count for chunk in sandbox.result(nothing).chunks) > len(text) * 0.9


def test_a_document_error_says_what_and_why_and_the_child_lives_on(
    run: Run, sandbox: Sandbox
) -> None:
    assert run(b"fine").chunks
    pid = sandbox.pid
    error = failure(lambda: run(b"\xff\xd8\xff\xe0 picture", "scan.pdf"))
    assert error.code == "no_text"
    assert "JPEG" in error.detail
    assert ".pdf" in error.detail
    assert run(b"fine").chunks
    assert sandbox.pid == pid


def test_the_health_check_can_show_what_protects(sandbox: Sandbox) -> None:
    protections = sandbox.start(nothing)
    assert {"pdeathsig", "rlimits", "no_new_privs"} <= set(protections)
    assert sandbox.protections == protections


def test_a_child_that_died_between_documents_costs_no_document(run: Run, sandbox: Sandbox) -> None:
    assert run(b"one").chunks
    assert sandbox.pid
    os.kill(sandbox.pid, signal.SIGKILL)
    time.sleep(0.05)
    assert run(b"two").chunks


def test_a_broken_installation_says_so_at_once(word_model: ModelSpec, tmp_path: Path) -> None:
    program = tmp_path / "broken.py"
    program.write_text("import no_such_module")
    for box in (Sandbox(program=program), Sandbox(python=tmp_path / "none")):
        with box:
            error = failure(lambda box=box: box.start(nothing))
        assert error.code == "sandbox_failed"


def test_a_parser_that_one_tenants_document_took_over_sees_no_other_tenants(
    faulty: Sandbox, word_model: ModelSpec
) -> None:
    def act(code: bytes, owner: int | None) -> object:
        with OpenContent(code).snapshot(1_000, nothing) as copy:
            request = ExtractRequest("x", word_model, owner=owner)
            faulty.submit(request, copy.fd, nothing)
        return json.loads(faulty.result(nothing).chunks[0].content)

    act(b"sys.spy = 'here'", 1)
    look = b"found = getattr(sys, 'spy', None)"
    assert [act(look, owner) for owner in (1, 2, 2, 1, None)] == ["here", None, None, None, None]


# --- what a document may cost ------------------------------------------------------------------


def test_a_document_that_eats_memory_dies_alone(
    act: Callable[..., object], faulty: Sandbox
) -> None:
    error = failure(lambda: act("x = bytearray(2_000_000_000)"))
    assert (error.code, error.permanent) == ("out_of_memory", True)
    assert act("found = 'next'") == "next"


def test_memory_wanted_by_a_library_in_c_is_out_of_memory_too(
    act: Callable[..., object],
) -> None:
    code = """
        data = []
        while True:
            data.append(os.urandom(1_000_000))
    """
    # Time enough to fill the memory on a busy machine.
    limits = Limits(cpu_seconds=120, wall_seconds=120)
    assert failure(lambda: act(code, limits)).code == "out_of_memory"


def test_an_endless_loop_ends_at_the_cpu_limit(act: Callable[..., object]) -> None:
    limits = Limits(cpu_seconds=1, wall_seconds=20)
    assert failure(lambda: act("while True: pass", limits)).code == "cpu_limit"


def test_the_cpu_limit_is_each_documents_own(act: Callable[..., object]) -> None:
    limits = Limits(cpu_seconds=3, wall_seconds=60)
    busy = "end = time.process_time() + 1.2\nwhile time.process_time() < end: pass\nfound = 1"
    assert [act(busy, limits) for _ in range(4)] == [1, 1, 1, 1]


def test_a_document_that_sleeps_ends_at_the_wall_limit(act: Callable[..., object]) -> None:
    error = failure(lambda: act("time.sleep(600)", Limits(wall_seconds=1)))
    assert error.code == "timeout"


def test_a_child_that_ignores_its_clock_is_stopped_by_the_parent(
    act: Callable[..., object],
) -> None:
    code = "import signal; signal.setitimer(signal.ITIMER_REAL, 0); time.sleep(60)"
    assert failure(lambda: act(code, Limits(wall_seconds=1))).code == "timeout"


def test_a_busy_parent_does_not_let_the_child_run_on(faulty: Sandbox, word_model: ModelSpec) -> None:
    submit(faulty, word_model, b"time.sleep(60)", "x", Limits(wall_seconds=1))
    pid = faulty.pid
    stat = Path(f"/proc/{pid}/stat")
    assert wait_until(lambda: stat.read_text().rsplit(")", 1)[1].split()[0] == "Z")
    assert failure(lambda: faulty.result(nothing)).code == "timeout"
    assert pid
    assert is_gone(pid)


@pytest.mark.parametrize(
    ("code", "name"),
    [("ctypes.string_at(0)", "SIGSEGV"), ("os.abort()", "SIGABRT"), ("os._exit(3)", "status 3")],
)
def test_a_crash_is_this_documents_error_and_the_next_is_served(
    act: Callable[..., object], code: str, name: str
) -> None:
    error = failure(lambda: act(code))
    assert error.code == "crashed"
    assert name in error.detail
    assert act("found = 'next'") == "next"


def test_a_killed_child_may_be_the_systems_doing_so_it_is_tried_again(
    faulty: Sandbox, word_model: ModelSpec
) -> None:
    submit(faulty, word_model, b"time.sleep(60)", "x", QUICK)
    assert faulty.pid
    time.sleep(0.3)
    os.kill(faulty.pid, signal.SIGKILL)
    error = failure(lambda: faulty.result(nothing))
    assert (error.code, error.permanent) == ("out_of_memory", False)


def reply(head: bytes, *columns: int, text: bytes = b"", numbers: int = 0) -> bytes:
    """A reply as it crosses the socket, well formed or not."""
    table = struct.pack(f"!{len(columns)}I", *columns)
    sizes = REPLY_HEADER.pack(len(head), numbers, len(columns) - numbers, len(text))
    return sizes + head + table + text


DOCUMENT = b'{"document": {"mime_type": "text/plain", "metadata": {}}}'


def error(code: str) -> bytes:
    words = {"code": code, "message": "m", "detail": "d", "hint": "h", "stage": "extract"}
    return reply(json.dumps({"error": words}).encode())


@pytest.mark.parametrize(
    "answer",
    [
        b"\xff" * 16,
        REPLY_HEADER.pack(1_000_001, 0, 0, 0),
        REPLY_HEADER.pack(2, 2**20, 0, 0),
        REPLY_HEADER.pack(2, 0, 2**20, 0),
        REPLY_HEADER.pack(2, 0, 3, 2**31),
        reply(b"[]"),
        reply(b"{{{"),
        reply(b"[" * 100_000),
        reply(b"{}"),
        reply(b'{"document": 1}'),
        reply(b'{"document": {"mime_type": "a\\u0000", "metadata": {}}}'),
        reply(b'{"document": {"mime_type": "a", "metadata": {"a": {}}}}'),
        reply(DOCUMENT, 1),
        reply(DOCUMENT, 1, 2**31, 4, 0, 0, numbers=2, text=b"text"),
        reply(DOCUMENT, 1, 1, 5, 0, 0, numbers=2, text=b"text"),
        reply(DOCUMENT, 1, 1, 3, 0, 0, numbers=2, text=b"text"),
        reply(DOCUMENT, 1, 1, 4, 0, 0, numbers=2, text=b"te\xfft"),
        reply(DOCUMENT, 1, 1, 4, 0, 0, numbers=2, text=b"te\0t"),
        reply(DOCUMENT, 1, 1, 0, 4, 0, numbers=2, text=b"text"),
        reply(b'{"error": {}}'),
        error("A code\0of any kind"),
        error("x" * 1_000),
    ],
)
def test_an_answer_forged_by_the_child_reaches_nothing(
    act: Callable[..., object], answer: bytes
) -> None:
    error = failure(lambda: act(f"os.write(0, {answer!r})"))
    assert error.code in ("crashed", "too_large")
    assert act("found = 'next'") == "next"


def test_an_answer_made_to_fill_the_memory_of_the_server_takes_no_more_than_its_length(
    faulty: Sandbox, word_model: ModelSpec
) -> None:
    """As JSON 40 MB of empty lists were 1 GB in the backend, and seconds without a check."""
    size = 40_000_000
    code = f"""
        from ragstone.sandbox.protocol import REPLY_HEADER
        text = memoryview(b"[]," * ({size} // 3))
        os.write(0, REPLY_HEADER.pack(0, 0, 1, len(text)))
        while text: text = text[os.write(0, text[:100_000]):]
        time.sleep(60)
    """
    limits = Limits(max_text_characters=size)
    submit(faulty, word_model, textwrap.dedent(code).encode(), "x", limits)
    tracemalloc.start()
    try:
        assert failure(lambda: faulty.result(nothing)).code in ("crashed", "timeout")
        assert tracemalloc.get_traced_memory()[1] < 4 * size
    finally:
        tracemalloc.stop()


def test_a_cancel_is_seen_while_a_long_answer_is_taken_apart() -> None:
    chunk = Chunk("text", "text", 4, 1, None, None)
    found = Extraction("text/plain", None, None, None, None, {}, None, None, (chunk,) * 20_000)
    data = encode_reply(extraction_to_reply(found))
    looks: list[int] = []
    header, body = data[: REPLY_HEADER.size], data[REPLY_HEADER.size :]
    reply = decode_reply(header, body, lambda: looks.append(1))
    assert len(looks) > 50
    assert ExtractRequest("a", Path("/")).answer(reply) == found


def test_a_child_that_answers_byte_by_byte_is_stopped_as_well(
    act: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parent, "TRANSFER_SECONDS", 1.0)
    code = """
        import signal
        from ragstone.sandbox.protocol import REPLY_HEADER
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.write(0, REPLY_HEADER.pack(2, 0, 1, 1_000_000))
        while True:
            os.write(0, bytes(1))
            time.sleep(0.01)
    """
    assert failure(lambda: act(code, Limits(wall_seconds=60))).code == "timeout"


def test_a_child_that_hangs_up_and_lives_on_is_ended(
    act: Callable[..., object], faulty: Sandbox
) -> None:
    act("found = 1")
    pid = faulty.pid
    error = failure(lambda: act("for fd in range(16): os.close(fd) if fd != 1 else 0", QUICK))
    assert error.code in ("crashed", "out_of_memory")
    assert pid
    assert is_gone(pid)


def test_chunks_beyond_the_limit_are_refused(run: Run) -> None:
    limits = Limits(max_chunks=3)
    error = failure(lambda: run(b"word " * 1_000, limits=limits))
    assert error.code == "too_many_chunks"


# --- cancel and death --------------------------------------------------------------------------


class CancelledError(Exception):
    pass


def test_a_cancel_is_seen_while_the_child_works_and_leaves_no_child(
    faulty: Sandbox, act: Callable[..., object]
) -> None:
    act("found = 1")
    pid = faulty.pid
    looks = itertools.count(1)

    def check() -> None:
        if next(looks) == 5:
            raise CancelledError

    with pytest.raises(CancelledError):
        act("time.sleep(600)", check=check)
    assert pid
    assert is_gone(pid)
    assert faulty.pid is None
    assert act("found = 'next'") == "next"


def test_closing_leaves_no_child_and_no_descriptor(word_model: ModelSpec) -> None:
    before = len(os.listdir("/proc/self/fd"))
    box = Sandbox()
    submit(box, word_model, b"text", "a.txt", Limits())
    pid = box.pid
    box.close()
    assert pid
    assert is_gone(pid)
    assert len(os.listdir("/proc/self/fd")) == before


PARENT = """
import sys, time
sys.path[:0] = {paths!r}
from pathlib import Path
from ragstone.sandbox.parent import Sandbox
from ragstone.sandbox.protocol import ExtractRequest
from ragstone.models.port import ModelSpec
from ragstone.stores.column import OpenContent
box = Sandbox(program=Path({program!r}))
with OpenContent(b"time.sleep(60)").snapshot(1000, lambda: None) as copy:
    box.start(lambda: None)
    box.submit(ExtractRequest("x", ModelSpec("words", "onnx", {folder!r}, 384, 256)), copy.fd, lambda: None)
print(box.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_backend_leaves_no_child_behind(
    faulty: Sandbox, word_model: ModelSpec, number: signal.Signals
) -> None:
    paths = [str(PACKAGE), *map(str, default_library_paths())]
    code = PARENT.format(paths=paths, program=str(faulty._program), folder=word_model.location)
    parent = subprocess.Popen(
        [default_interpreter(), "-c", code], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout
    pid = int(parent.stdout.readline())
    time.sleep(0.2)
    assert not is_gone(pid)
    parent.send_signal(number)
    parent.wait()
    parent.stdout.close()

    def is_dead() -> bool:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            stat = Path(f"/proc/{pid}/stat").read_text()
            return stat.rsplit(")", 1)[1].split()[0] == "Z"  # init has yet to reap it
        return True

    assert wait_until(is_dead)


def test_a_signal_to_the_backends_group_is_not_the_childs_death(
    act: Callable[..., object], faulty: Sandbox
) -> None:
    act("found = 1")
    assert faulty.pid
    assert os.getpgid(faulty.pid) != os.getpgid(0)


def test_the_child_works_where_the_backend_blocks_all_signals(
    word_model: ModelSpec, act: Callable[..., object]
) -> None:
    old = signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))
    try:
        error = failure(lambda: act("while True: pass", Limits(cpu_seconds=1, wall_seconds=20)))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
    assert error.code == "cpu_limit"


# --- confinement -------------------------------------------------------------------------------


def attempt(act: Callable[..., object], code: str) -> object:
    """The name of the error that `code` meets in the child, None if it worked."""
    indented = textwrap.indent(textwrap.dedent(code).strip(), "    ")
    return act(
        f"found = None\ntry:\n{indented}\nexcept Exception as error:\n"
        "    found = type(error).__name__"
    )


@pytest.fixture
def protections(sandbox: Sandbox) -> tuple[str, ...]:
    return sandbox.start(nothing)


def test_the_child_cannot_read_the_servers_files(
    act: Callable[..., object], protections: tuple[str, ...], tmp_path: Path
) -> None:
    if not any(name.startswith("landlock") for name in protections):
        pytest.skip("the kernel has no Landlock")
    (tmp_path / "secret").write_text("x")
    for path in ("/etc/passwd", str(tmp_path / "secret"), "/proc/self/environ", "/dev/null"):
        assert attempt(act, f"open({path!r}).close()") == "PermissionError"
    assert attempt(act, "os.listdir('/')") == "PermissionError"


def test_the_child_cannot_write_make_or_remove_a_file(
    act: Callable[..., object], tmp_path: Path
) -> None:
    tmp_path.chmod(0o777)
    victim = tmp_path / "victim"
    victim.write_text("keep")
    victim.chmod(0o666)
    for code in (
        f"open({str(victim)!r}, 'w').close()",
        f"open({str(victim)!r}, 'r+').close()",
        f"open({str(tmp_path / 'new')!r}, 'x').close()",
        f"os.truncate({str(victim)!r}, 0)",
        f"os.unlink({str(victim)!r})",
        f"os.rename({str(victim)!r}, {str(tmp_path / 'moved')!r})",
        f"os.mkdir({str(tmp_path / 'folder')!r})",
        f"os.chmod({str(victim)!r}, 0)",
        f"os.symlink('x', {str(tmp_path / 'link')!r})",
    ):
        assert attempt(act, code) == "PermissionError", code
    assert victim.read_text() == "keep"


def test_the_child_cannot_reach_the_network_or_the_database(
    act: Callable[..., object], protections: tuple[str, ...]
) -> None:
    if not any(name.startswith("seccomp") for name in protections):
        pytest.skip("the kernel has no seccomp filter")
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    assert attempt(act, f"socket.create_connection(('127.0.0.1', {port}))") == "PermissionError"
    assert attempt(act, "socket.socket(socket.AF_UNIX)") == "PermissionError"
    assert attempt(act, "socket.socketpair()") == "PermissionError"
    listener.close()


def test_the_child_cannot_start_or_signal_a_process(
    act: Callable[..., object], protections: tuple[str, ...]
) -> None:
    if not any(name.startswith("seccomp") for name in protections):
        pytest.skip("the kernel has no seccomp filter")
    assert attempt(act, "os.fork()") == "PermissionError"
    assert attempt(act, "os.execv('/bin/true', ['true'])") == "PermissionError"
    assert attempt(act, "os.posix_spawn('/bin/true', ['true'], {})") == "PermissionError"
    assert attempt(act, f"os.kill({os.getpid()}, 0)") == "PermissionError"
    assert attempt(act, "import _thread; _thread.start_new_thread(print, ())") == "RuntimeError"


def test_the_child_cannot_lift_its_limits(act: Callable[..., object]) -> None:
    code = "import resource; resource.setrlimit(resource.RLIMIT_{0}, (10**12, 10**12))"
    if os.geteuid() != 0:
        assert attempt(act, code.format("AS")) == "ValueError"
    assert attempt(act, f"import resource; resource.prlimit({os.getpid()}, 0)") in (
        "PermissionError",
        "OSError",
    )


def test_the_child_has_no_environment_and_no_other_descriptor(act: Callable[..., object]) -> None:
    secret = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(secret, True)
    try:
        found = act(
            """
            def opened():
                for fd in range(32):
                    try:
                        status = os.fstat(fd)
                    except OSError:
                        continue
                    yield [status.st_dev, status.st_ino]
            found = [sorted(os.environ), os.getcwd(), list(opened())]
            """
        )
        status = os.fstat(secret)
    finally:
        os.close(secret)
    assert isinstance(found, list)
    assert found[0] in (["TOKENIZERS_PARALLELISM"], ["LC_CTYPE", "TOKENIZERS_PARALLELISM"])
    assert found[1] == "/"
    # Three standard streams, the socket, its own statm. Newer versions of libffi keep their own
    # library open. The document's is closed before a parser sees it.
    assert [status.st_dev, status.st_ino] not in found[2]
    assert len(found[2]) <= 6


# --- hostile documents -------------------------------------------------------------------------


def zip_of(members: dict[str, bytes]) -> bytes:
    target = BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return target.getvalue()


BODY = (
    b'<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">'
    b"<w:body>%s</w:body></w:document>"
)
PARAGRAPH = b"<w:p><w:r><w:t>%s</w:t></w:r></w:p>"


def docx_of(document: bytes) -> bytes:
    return zip_of({"[Content_Types].xml": b"<Types/>", "word/document.xml": document})


def pdf_of(content: bytes, *, inflated: bool = False) -> bytes:
    """A page whose content stream is `content`, compressed unless it already is."""
    data = content if inflated else zlib.compress(content, 9)
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents 4 0 R"
        b"/Resources<</Font<</F 5 0 R>>/XObject<</X 6 0 R>>>>>>",
        b"<</Length %d/Filter/FlateDecode>>stream\n%s\nendstream" % (len(data), data),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
        b"<</Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</X 6 0 R>>>>"
        b"/Length 20>>stream\n/X Do /X Do /X Do   \nendstream",
    ]
    target = b"%PDF-1.7\n"
    for number, body in enumerate(objects, start=1):
        target += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    return target + b"trailer<</Root 1 0 R>>\n%%EOF"


def hostile() -> dict[str, Callable[[], tuple[bytes, str]]]:
    """How to make each document; made only for its own test."""
    laughs = b"".join(
        b'<!ENTITY a%d "%s">' % (level, b"&a%d;" % (level - 1) * 10) for level in range(1, 10)
    )
    lol = b'<!DOCTYPE w:document [<!ENTITY a0 "lol">%s]>' % laughs
    external = b'<!DOCTYPE w:document [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    return {
        "zip bomb": lambda: (docx_of(BODY % (b" " * 150_000_000)), "a.docx"),
        "many members": lambda: (
            zip_of({"[Content_Types].xml": b"", **{f"word/{n}": b"" for n in range(3_000)}}),
            "a.docx",
        ),
        "entity expansion": lambda: (docx_of(lol + BODY % (PARAGRAPH % b"&a9;")), "a.docx"),
        "external entity": lambda: (docx_of(external + BODY % (PARAGRAPH % b"&x;")), "a.docx"),
        "deep XML": lambda: (docx_of(BODY % (b"<w:p>" * 500_000)), "a.docx"),
        "cut archive": lambda: (docx_of(BODY % (PARAGRAPH % b"text"))[:-30], "a.docx"),
        "deep page": lambda: (b"<html><body>" + b"<div>" * 400_000 + b"deep", "a.html"),
        "deep list": lambda: (b"- " * 200_000 + b"deep", "a.md"),
        "brackets": lambda: (b"[" * 400_000, "a.md"),
        "emphasis": lambda: (b"*a **a " * 60_000, "a.md"),
        "recursive PDF form": lambda: (pdf_of(b"/X Do BT /F 9 Tf (text) Tj ET"), "a.pdf"),
        "PDF bomb": lambda: (pdf_of(b"q " * 150_000_000), "a.pdf"),
        "PDF of nested arrays": lambda: (b"%PDF-1.4\n1 0 obj\n" + b"[" * 1_000_000, "a.pdf"),
        "PDF of rubbish": lambda: (b"%PDF-1.7\n" + os.urandom(100_000), "a.pdf"),
        "one line": lambda: (b"x" * 3_000_000, "a.txt"),
        "binary": lambda: (os.urandom(100_000), "a.txt"),
    }


@pytest.mark.parametrize("name", hostile())
def test_hostile_input_costs_only_its_own_document(run: Run, sandbox: Sandbox, name: str) -> None:
    """Text, or a reason; within the limits; and the next document is served."""
    data, file_name = hostile()[name]()
    pid = sandbox.pid
    limits = Limits(cpu_seconds=5, wall_seconds=10)
    try:
        found = run(data, file_name, limits=limits)
        assert all("root:" not in chunk.content for chunk in found.chunks)
    except DocumentError as error:
        assert error.message
        assert error.detail
        print(name, error.code, error.detail[:100])
    if sandbox.pid != pid and pid:
        assert is_gone(pid)
    assert run(b"next").chunks


def test_the_package_path_in_use_is_this_repositorys() -> None:
    assert sys.modules["ragstone.sandbox.parent"].__file__ == str(
        PACKAGE / "ragstone" / "sandbox" / "parent.py"
    )


# The model in a child


@pytest.fixture
def model() -> Iterator[Sandbox[list[str]]]:
    with Sandbox[list[str]](name="embed") as box:
        yield box


def test_the_vectors_of_a_confined_child_are_those_of_the_model(model: Sandbox[list[str]]) -> None:
    texts = ["Pumps need water.", "", "Ünïcödé \ud800 日本語 " * 20]
    model.submit(EmbedRequest(onnx_model(MODEL_DIR), texts, wall_seconds=60), None, nothing)
    here = [vector_literal(row) for row in Embedder.load(MODEL_DIR).embed_passages(texts)]
    assert model.result(nothing) == here
    assert {"rlimits", "no_new_privs"} <= set(model.protections)


def test_a_missing_model_is_told_and_the_work_is_tried_again(
    model: Sandbox[list[str]], tmp_path: Path
) -> None:
    model.submit(EmbedRequest(onnx_model(tmp_path), ["text"], wall_seconds=60), None, nothing)
    with pytest.raises(DocumentError, match="cannot be used") as caught:
        model.result(nothing)
    assert (caught.value.code, caught.value.failure) == ("model_failed", "transient")


def test_a_model_that_takes_too_long_is_stopped(model: Sandbox[list[str]]) -> None:
    model.submit(EmbedRequest(onnx_model(MODEL_DIR), ["long text " * 100] * 10_000, wall_seconds=0.3), None, nothing)
    with pytest.raises(DocumentError) as caught:
        model.result(nothing)
    assert caught.value.code == "timeout"


@pytest.mark.parametrize(
    "vectors", [[None], [], ["[1,2]", "[3]"], ["[1); drop table chunks"], ["[]"], [""], ["[1]\n"]]
)
def test_a_forged_vector_is_refused(vectors: list[str | None]) -> None:
    with pytest.raises(ValueError, match="form agreed"):
        EmbedRequest(onnx_model(MODEL_DIR), ["one text"], wall_seconds=1).answer(Reply({}, texts=vectors))
