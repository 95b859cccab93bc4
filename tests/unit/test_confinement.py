"""What a confined process may ask of the kernel: what it needs, and nothing that touches others."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import ragstone
from ragstone.sandbox.seccomp import allowed_calls, filter_program

PACKAGE = Path(ragstone.__file__).parents[1]
MACHINE = platform.machine()
needs_filter = pytest.mark.skipif(
    not allowed_calls(MACHINE), reason="there is no filter for this machine"
)
EPERM, ENOSYS = 1, 38
# uretprobe and uprobe: newer kernels let no filter see them, and kill who makes them otherwise.
PROBES = {335, 336} if MACHINE == "x86_64" else set()

# A process that confines itself as the child does, and then does what the test says. It gives up
# root first where it has it, as the server never runs as root; `report` is its only way to answer.
CONFINED = """
import ctypes, errno, json, os, signal, sys
sys.path[:0] = [{package!r}]
from ragstone.sandbox.confine import confine
if os.geteuid() == 0:
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(number, *arguments):
    ctypes.set_errno(0)
    return libc.syscall(ctypes.c_long(number), *map(ctypes.c_ulong, arguments)), ctypes.get_errno()
def report(value):
    os.write(1, json.dumps(value).encode() + b"\\n")
def why(action):
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno]
parent = os.getppid()
def prctl(option, value):
    if call({prctl}, option, value, 0, 0, 0)[0] != 0:
        raise OSError(ctypes.get_errno(), "prctl")
{before}
protections = confine(1 << 30, parent, [])
{code}
"""


def run_confined(code: str, before: str = "") -> subprocess.CompletedProcess[bytes]:
    number = allowed_calls(MACHINE)["prctl"][0] if allowed_calls(MACHINE) else -1
    program = CONFINED.format(package=str(PACKAGE), before=before, code=code, prctl=number)
    return subprocess.run(
        [sys.executable, "-B", "-c", program], capture_output=True, timeout=60, cwd="/"
    )


def confined(code: str, before: str = "") -> list:
    """What the code reported, line by line, from within the confinement."""
    done = run_confined(code, before)
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


@needs_filter
def test_every_system_call_that_is_not_listed_is_refused() -> None:
    """All numbers of both tables, and room for those of kernels to come."""
    numbers = {number for number, _ in allowed_calls(MACHINE).values()}
    others = [number for number in range(1_024) if number not in numbers | PROBES]
    found = confined(f"for number in {others}: report([number, *call(number, *[0] * 6)])")
    assert [number for number, _, _ in found] == others
    wrong = [row for row in found if row[1] != -1 or row[2] != (EPERM if row[0] < 424 else ENOSYS)]
    assert wrong == []


@needs_filter
@pytest.mark.parametrize("number", sorted(PROBES))
def test_a_call_that_only_a_probe_of_the_kernel_may_make_kills_or_is_refused(number: int) -> None:
    done = run_confined(f"report(call({number}, *[0] * 6))")
    assert done.returncode == -signal.SIGILL or json.loads(done.stdout)[0] == -1


@needs_filter
def test_the_calls_of_another_table_are_refused() -> None:
    """x86_64 has a second table, x32, under the same architecture."""
    found = confined("for number in range(600): report(call(0x40000000 + number, *[0] * 6))")
    assert found == [[-1, ENOSYS]] * 600


@pytest.mark.skipif(MACHINE != "x86_64", reason="only there are other calls a single instruction")
def test_a_call_by_the_door_for_32_bits_kills() -> None:
    before = """
import mmap
# mov eax, 20 (getpid); int 0x80; ret
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex("b814000000cd80c3"))
getpid = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
"""
    done = run_confined("getpid()\nreport('alive')", before)
    assert done.stdout == b""
    assert -done.returncode in (signal.SIGSYS, signal.SIGSEGV)  # the latter: the kernel has no such


REACHING_OUT = {
    "open for writing": "os.open('/dev/null', os.O_WRONLY)",
    "open for both": "os.open('/dev/null', os.O_RDWR)",
    "make a file": "os.open('/tmp', os.O_RDONLY | os.O_CREAT)",
    "make a nameless file": "os.open('/tmp', os.O_TMPFILE | os.O_RDWR)",
    "truncate": "os.open('/dev/null', os.O_RDONLY | os.O_TRUNC)",
    "a handle of any path": "os.open('/', os.O_PATH)",
    "signals for input": "fcntl.fcntl(0, fcntl.F_SETOWN, parent)",
    "which signal": "fcntl.fcntl(0, fcntl.F_SETSIG, 9)",
    "a lease": "fcntl.fcntl(0, fcntl.F_SETLEASE, fcntl.F_RDLCK)",
    "notices of a folder": "fcntl.fcntl(0, fcntl.F_NOTIFY, fcntl.DN_MODIFY)",
    "a lock": "fcntl.lockf(0, fcntl.LOCK_SH)",
    "seals": "fcntl.fcntl(0, fcntl.F_ADD_SEALS, 1)",
    "characters into a terminal": "fcntl.ioctl(0, 0x5412, b'x')",
    "a terminal of its own": "fcntl.ioctl(0, 0x540E, 0)",
    "limits of the parent": "resource.prlimit(parent, resource.RLIMIT_CPU)",
    "processors of the parent": "os.sched_setaffinity(parent, {0})",
    "which processors": "os.sched_getaffinity(parent)",
    "schedule of the parent": "os.sched_setscheduler(parent, os.SCHED_IDLE, os.sched_param(0))",
    "its own schedule": "os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))",
    "parameters of the parent": "os.sched_setparam(parent, os.sched_param(0))",
    "priority of the parent": "os.setpriority(os.PRIO_PROCESS, parent, 19)",
    "priority of the account": "os.setpriority(os.PRIO_USER, 0, 19)",
    "signals to the parent": "os.kill(parent, 0)",
    "signals to all": "os.kill(-1, 0)",
    "signals to the group": "os.killpg(0, 0)",
    "processor time of the parent": "time.clock_gettime((~parent << 3) | 2)",
    "to outlive the parent": "prctl(1, 0)",
    "to be looked into": "prctl(4, 1)",
    "a tracer": "prctl(0x59616D61, parent)",
    "a handle of the parent": "os.pidfd_open(parent)",
    "a child": "os.fork()",
    "a pipe": "os.pipe()",
    "a file in memory": "os.memfd_create('x')",
    "a terminal": "os.openpty()",
    "a session": "os.setsid()",
    "a socket": "socket.socket(socket.AF_INET)",
    "raw network": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "the kernel's crypto": "socket.socket(38, socket.SOCK_SEQPACKET)",
    "another folder": "os.chdir('/')",
    "another root": "os.chroot('/')",
    "code that was data": "mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)",
    "locked memory": "mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | 0x20 | 0x2000)",
    "the server's huge pages": "mmap.mmap(-1, 1 << 21, flags=mmap.MAP_PRIVATE | 0x20 | 0x40000)",
    "merged pages": "mmap.mmap(-1, 4096).madvise(12)",
    "poisoned pages": "mmap.mmap(-1, 4096).madvise(100)",
}


@needs_filter
def test_no_argument_of_an_allowed_call_reaches_beyond_the_process() -> None:
    (found,) = confined(
        f"report({{name: why(lambda: eval(code)) for name, code in {REACHING_OUT!r}.items()}})",
        before="import fcntl, mmap, resource, socket, time",
    )
    assert {name: error for name, error in found.items() if error != "EPERM"} == {
        "a handle of the parent": "ENOSYS"
    }


class Ipc:
    """Shared memory, a semaphore and a queue of this process, as PostgreSQL has some."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None)
        flags = 0o600 | 0o1000  # IPC_CREAT
        self._remove = {
            "shm": lambda: libc.shmctl(self.shm, 0, None),
            "sem": lambda: libc.semctl(self.sem, 0, 0),
            "msg": lambda: libc.msgctl(self.msg, 0, None),
        }
        self.shm = libc.shmget(0, 4096, flags)
        self.sem = libc.semget(0, 1, flags)
        self.msg = libc.msgget(0, flags)

    def remove(self) -> dict[str, int]:
        """Takes all away; 0 is what each says that was still there."""
        return {name: remove() for name, remove in self._remove.items()}


@needs_filter
def test_memory_semaphores_and_queues_of_the_parent_are_not_reached() -> None:
    """As root: there the kernel asks for no owner and no mode, only the filter stands."""
    ipc = Ipc()
    try:
        found = confined(
            f"""
libc.shmat.restype = ctypes.c_void_p
for ask in (
    lambda: libc.shmat({ipc.shm}, None, 0) != 2**64 - 1,
    lambda: libc.shmctl({ipc.shm}, 0, None) == 0,
    lambda: libc.semctl({ipc.sem}, 0, 0) == 0,
    lambda: libc.msgctl({ipc.msg}, 0, None) == 0,
    lambda: libc.msgsnd({ipc.msg}, ctypes.c_long(1), 0, 0) == 0,
    lambda: libc.shmget(0, 4096, 0o1600) >= 0,
    lambda: libc.mq_open(b"/ragstone", os.O_CREAT, 0o600, None) >= 0,
):
    ctypes.set_errno(0)
    report([ask(), errno.errorcode.get(ctypes.get_errno())])
""",
            before="os.setresuid = os.setresgid = lambda *ids: None",
        )
    finally:
        left = ipc.remove()
    assert found == [[False, "EPERM"]] * 7
    assert left == {"shm": 0, "sem": 0, "msg": 0}


@needs_filter
def test_the_parent_keeps_its_processors_priority_and_life() -> None:
    def state() -> list[object]:
        me = os.getpid()
        who = os.PRIO_PROCESS
        return [os.sched_getaffinity(me), os.sched_getscheduler(me), os.getpriority(who, me)]

    before = state()
    found = confined(
        """
for ask in (
    lambda: os.sched_setaffinity(parent, {0}),
    lambda: os.sched_setscheduler(parent, os.SCHED_IDLE, os.sched_param(0)),
    lambda: os.setpriority(os.PRIO_PROCESS, parent, 19),
    lambda: os.kill(parent, signal.SIGUSR1),
    lambda: signal.pidfd_send_signal(0, signal.SIGUSR1),
):
    report(why(ask))
ioprio_set = {"x86_64": 251, "aarch64": 30}[os.uname().machine]
report(call(ioprio_set, 1, parent, 3 << 13))
"""
    )
    assert state() == before
    assert found == [*["EPERM"] * 4, "ENOSYS", [-1, EPERM]]


@pytest.mark.parametrize(
    ("machine", "header"),
    [
        ("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        ("aarch64", "/usr/include/asm-generic/unistd.h"),
    ],
)
def test_the_numbers_are_those_of_the_kernels_own_headers(machine: str, header: str) -> None:
    if not Path(header).exists():
        pytest.skip("linux-libc-dev is not installed")
    lines = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", Path(header).read_text(), re.M)
    numbers = {name: int(number) for name, number in lines}
    numbers.setdefault("newfstatat", numbers.get("fstatat", -1))
    for name, (number, _) in allowed_calls(machine).items():
        assert (name, numbers[name]) == (name, number)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_jump_of_the_filter_lands_inside_it(machine: str) -> None:
    program = filter_program(machine, 4711)
    for place, (code, if_true, if_false, _) in enumerate(program):
        if code & 0x07 == 0x05:
            assert place + 1 + max(if_true, if_false) < len(program)
        assert if_true < 256 and if_false < 256
    assert program[-1][3] == 0x00050000 | EPERM


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_of_either_machine_decides_the_same(machine: str) -> None:
    """Interpreted here, as only one of the two can be tried."""
    calls = {name: number for name, (number, _) in allowed_calls(machine).items()}
    architecture = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[machine]

    def decide(name: str | int, *arguments: int, architecture: int = architecture) -> str:
        number = calls[name] if isinstance(name, str) else name
        return run_filter(filter_program(machine, 4711), number, architecture, arguments)

    assert decide("read", 0, 0, 10) == "allow"
    assert decide("read", architecture=0x40000003) == "kill"
    assert decide("mmap", 0, 4096, 5, 2) == "allow"
    assert decide("mmap", 0, 4096, 7, 2) == "EPERM"
    assert decide("mmap", 0, 4096, 6, 0x22) == "EPERM"
    assert decide("mmap", 0, 4096, 3, 0x22 | 0x2000) == "EPERM"
    assert decide("mprotect", 0, 4096, 4) == "allow"
    assert decide("mprotect", 0, 4096, 6) == "EPERM"
    assert decide("openat", 2**64 - 100, 0, 0o2000000) == "allow"
    assert decide("openat", 2**64 - 100, 0, 1) == "EPERM"
    assert decide("fcntl", 3, 1030, 0) == "allow"
    assert decide("fcntl", 3, 8, 1) == "EPERM"
    assert decide("tgkill", 4711, 4711, 6) == "allow"
    assert decide("tgkill", 4712, 4711, 6) == "EPERM"
    assert decide("prlimit64", 0, 0, 0, 0) == "allow"
    assert decide("prlimit64", 1, 0, 0, 0) == "EPERM"
    assert decide("futex", 0, 0x89, 0) == "allow"
    assert decide("futex", 0, 0x86, 0) == "EPERM"
    assert decide("clock_gettime", 2) == "allow"
    assert decide("clock_gettime", 2**64 - 6) == "EPERM"
    assert decide("prctl", 15) == "allow"
    assert decide("prctl", 1) == "EPERM"
    assert decide(435) == decide(100_000) == decide(0x40000001) == "ENOSYS"
    socket_call = {"x86_64": 41, "aarch64": 198}[machine]
    assert decide(socket_call, 2, 1, 0) == "EPERM"


def run_filter(program: list, number: int, architecture: int, arguments: tuple[int, ...]) -> str:
    data = {0: number, 4: architecture}
    for place in range(6):
        value = arguments[place] if place < len(arguments) else 0
        data |= {16 + 8 * place: value & 0xFFFFFFFF, 20 + 8 * place: value >> 32 & 0xFFFFFFFF}
    place = held = 0
    while True:
        code, if_true, if_false, operand = program[place]
        place += 1
        match code:
            case 0x20:
                held = data[operand]
            case 0x54:
                held &= operand
            case 0x15:
                place += if_true if held == operand else if_false
            case 0x35:
                place += if_true if held >= operand else if_false
            case 0x45:
                place += if_true if held & operand else if_false
            case 0x06:
                names = {0x7FFF0000: "allow", 0x80000000: "kill"}
                return names.get(operand) or {1: "EPERM", 38: "ENOSYS"}[operand & 0xFFFF]


def test_a_machine_that_is_not_known_has_no_filter() -> None:
    assert allowed_calls("sparc64") == {}
