"""Which system calls the child can make: a list of those it needs, and everything else is refused.

The list is what the parsers, Tesseract, ONNX Runtime and Python were seen to call (`strace -f` over
documents of every format on Debian 12, 13 and forky), and what their counterparts in other
versions of the C library call in the same places. Where an argument decides what a call can do to
others, the argument is checked, too.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from dataclasses import dataclass

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2

# Instructions of BPF, what the filter returns, and where it finds what it looks at.
_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT = 0x15, 0x35, 0x45
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_AT_NUMBER, _AT_ARCHITECTURE, _AT_ARGUMENTS = 0, 4, 16
_EPERM, _ENOSYS = 1, 38

# Calls from this number on came after Linux 5.0, under one number on all machines. They are
# answered as by a kernel that does not have them, because the C library then takes the older call.
_FIRST_NEW_CALL = 424

_Instruction = tuple[int, int, int, int]
_FAIL: _Instruction = (_RETURN, 0, 0, _ERRNO | _EPERM)


@dataclass(frozen=True)
class OneOf:
    """The argument, or its bits within `mask`, must be one of these."""

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF

    def code(self, own_pid: int) -> list[_Instruction]:
        code: list[_Instruction] = [(_AND, 0, 0, self.mask)] if self.mask != 0xFFFFFFFF else []
        for place, value in enumerate(self.values):
            code.append((_JUMP_EQUAL, len(self.values) - place, 0, value))
        return [*code, _FAIL]


@dataclass(frozen=True)
class OwnProcess:
    """The argument must be the caller's own process id, or where that means the same, 0."""

    argument: int
    zero: bool = True

    def code(self, own_pid: int) -> list[_Instruction]:
        own = (0, own_pid) if self.zero else (own_pid,)
        return OneOf(self.argument, own).code(own_pid)


@dataclass(frozen=True)
class Within:
    """The argument may have no bits but these."""

    argument: int
    bits: int

    def code(self, own_pid: int) -> list[_Instruction]:
        return [(_JUMP_ANY_BIT, 0, 1, ~self.bits & 0xFFFFFFFF), _FAIL]


@dataclass(frozen=True)
class NotAll:
    """The argument may not have all of these bits."""

    argument: int
    bits: int

    def code(self, own_pid: int) -> list[_Instruction]:
        return [(_AND, 0, 0, self.bits), (_JUMP_EQUAL, 0, 1, self.bits), _FAIL]


Rule = OneOf | OwnProcess | Within | NotAll

# Reading, and nothing that makes or changes a file. Linux has given these bits other places on ARM.
_OPEN_FLAGS = {
    # O_NONBLOCK, O_CLOEXEC, O_NOCTTY, O_LARGEFILE, O_DIRECTORY, O_NOFOLLOW
    "x86_64": 0o4000 | 0o2000000 | 0o400 | 0o100000 | 0o200000 | 0o400000,
    "aarch64": 0o4000 | 0o2000000 | 0o400 | 0o400000 | 0o40000 | 0o100000,
}
# Read, write, execute; on ARM libraries are protected by BTI and MTE as well.
_PROTECTION = {"x86_64": 0b111, "aarch64": 0b111 | 0x10 | 0x20}
_WRITE_AND_EXECUTE = 0b110
# Not MAP_LOCKED and MAP_HUGETLB, which take memory away from the server, nor what is for devices.
_MAP_FLAGS = (
    0x0F | 0x10 | 0x20 | 0x40 | 0x100 | 0x800 | 0x1000 | 0x4000 | 0x8000 | 0x20000 | 0x100000
)
# How memory will be used and what of it can be given back; nothing that damages pages or merges
# them with those of others.
_ADVICE = (0, 1, 2, 3, 4, 8, 14, 15, 16, 17, 20, 21, 22, 23, 25)
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC, F_GET_SEALS: no locks, leases,
# notices, nor owners, to whom signals would go.
_FCNTL = (0, 1, 2, 3, 4, 1030, 1034)
# TCGETS and TCGETS2 (is it a terminal?), TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_IOCTL = (0x5401, 0x802C542A, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# Names of threads and of memory, for who looks at the process; on ARM how wide vectors are.
# Nothing of what confinement rests on: not PR_SET_PDEATHSIG, not PR_SET_DUMPABLE.
_PRCTL = {"x86_64": (15, 16, 0x53564D41), "aarch64": (15, 16, 0x53564D41, 51, 64)}
# Whether the wide registers of AMX may be used, and to ask for them.
_ARCH_PRCTL = (0x1021, 0x1022, 0x1023)
# Waiting and waking, without the operations that lend priority.
_FUTEX = (0, 1, 3, 4, 5, 9, 10)
# The system's clocks and the process' own; a negative number is the clock of another process.
_CLOCKS = tuple(range(12))

# Name: number on x86_64, number on aarch64 (None: that machine has no such call).
_FREE: dict[str, tuple[int | None, int | None]] = {
    # memory
    "brk": (12, 214), "munmap": (11, 215), "mremap": (25, 216),
    # reading files, and what there is to know of them
    "read": (0, 63), "readv": (19, 65), "pread64": (17, 67), "lseek": (8, 62), "close": (3, 57),
    "fadvise64": (221, 223), "getdents64": (217, 61), "fstat": (5, 80), "stat": (4, None),
    "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291), "access": (21, None),
    "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, None),
    "readlinkat": (267, 78), "getcwd": (79, 17),
    # answering, over the descriptors that the parent gave; no file can be opened for writing
    "write": (1, 64), "writev": (20, 66), "sendto": (44, 206), "recvfrom": (45, 207),
    "recvmsg": (47, 212), "poll": (7, None), "ppoll": (271, 73), "select": (23, None),
    "pselect6": (270, 72),
    # time
    "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None),
    "nanosleep": (35, 101), "times": (100, 153), "getrusage": (98, 165), "setitimer": (38, 103),
    # itself
    "getpid": (39, 172), "gettid": (186, 178), "getppid": (110, 173), "getuid": (102, 174),
    "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177), "getrlimit": (97, 163),
    "getcpu": (309, 168), "sched_yield": (24, 124), "getrandom": (318, 278), "uname": (63, 160),
    "sysinfo": (99, 179), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "sigaltstack": (131, 132), "restart_syscall": (219, 128),
    "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip


def _ruled(machine: str) -> dict[str, tuple[tuple[int | None, int | None], tuple[Rule, ...]]]:
    """The calls of which arguments are checked: their numbers as above, and the rules."""
    flags = _OPEN_FLAGS[machine]
    memory = (Within(2, _PROTECTION[machine]), NotAll(2, _WRITE_AND_EXECUTE))
    return {
        "mmap": ((9, 222), (*memory, Within(3, _MAP_FLAGS))),
        "mprotect": ((10, 226), memory),
        "madvise": ((28, 233), (OneOf(2, _ADVICE),)),
        "futex": ((202, 98), (OneOf(1, _FUTEX, mask=0x7F),)),
        "open": ((2, None), (Within(1, flags),)),
        "openat": ((257, 56), (Within(2, flags),)),
        "fcntl": ((72, 25), (OneOf(1, _FCNTL),)),
        "ioctl": ((16, 29), (OneOf(1, _IOCTL),)),
        "clock_gettime": ((228, 113), (OneOf(0, _CLOCKS),)),
        "clock_nanosleep": ((230, 115), (OneOf(0, _CLOCKS),)),
        "prctl": ((157, 167), (OneOf(0, _PRCTL[machine]),)),
        "arch_prctl": ((158, None), (OneOf(0, _ARCH_PRCTL),)),
        # the limits and the processors of its own; abort() signals its own process
        "prlimit64": ((302, 261), (OwnProcess(0),)),
        "sched_getaffinity": ((204, 123), (OwnProcess(0),)),
        "tgkill": ((234, 131), (OwnProcess(0, zero=False),)),
        "tkill": ((200, 130), (OwnProcess(0, zero=False),)),
    }


# Machine: index into the pairs above, audit architecture.
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


def filter_system_calls() -> int:
    """Install the filter for good; how many calls are left, 0 where there is no filter."""
    allowed = allowed_calls(platform.machine())
    if not allowed:
        return 0
    program = filter_program(platform.machine(), os.getpid())
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))

    class SockFprog(ctypes.Structure):
        _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    argument = SockFprog(len(program), ctypes.cast(buffer, ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(argument), 0, 0)
    return len(allowed) if done == 0 else 0


def allowed_calls(machine: str) -> dict[str, tuple[int, tuple[Rule, ...]]]:
    """Name of each call that can be made: its number and the rules for its arguments.

    Empty for a machine that is not known here.
    """
    if machine not in _MACHINES or sys.maxsize < 2**32:
        return {}
    column = _MACHINES[machine][0]
    free: dict[str, tuple[tuple[int | None, int | None], tuple[Rule, ...]]]
    free = {name: (pair, ()) for name, pair in _FREE.items()}
    # The kernel remembers which calls are always allowed; the others are looked up each time.
    listed = _ruled(machine) | free
    numbers = {name: (pair[column], rules) for name, (pair, rules) in listed.items()}
    return {
        name: (number, rules) for name, (number, rules) in numbers.items() if number is not None
    }


def filter_program(machine: str, own_pid: int) -> list[_Instruction]:
    """The filter as BPF instructions (code, jump if true, jump if false, operand).

    A system call of another architecture kills. What is not allowed fails with EPERM, so that a
    library which merely tries goes on.
    """
    program: list[_Instruction] = [
        (_LOAD, 0, 0, _AT_ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, _MACHINES[machine][1]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _AT_NUMBER),
    ]
    for number, rules in allowed_calls(machine).values():
        body = _checked(rules, own_pid)
        program += [(_JUMP_EQUAL, 0, len(body), number), *body]
    return [
        *program,
        (_JUMP_AT_LEAST, 0, 1, _FIRST_NEW_CALL),
        (_RETURN, 0, 0, _ERRNO | _ENOSYS),
        _FAIL,
    ]


def _checked(rules: tuple[Rule, ...], own_pid: int) -> list[_Instruction]:
    """Each rule jumps over its own refusal. The low half of an argument is all the kernel reads."""
    body: list[_Instruction] = []
    for rule in rules:
        body += [(_LOAD, 0, 0, _AT_ARGUMENTS + 8 * rule.argument), *rule.code(own_pid)]
    return [*body, (_RETURN, 0, 0, _ALLOW)]
