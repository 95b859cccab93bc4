"""Take away from this very process all it does not need to read one document.

Runs in the child only, before any parser is imported. Every layer works without the others; which
ones the kernel has is reported, so that a health check can show it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterable

from .seccomp import filter_system_calls

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS, _PR_SET_MDWE = 1, 4, 38, 65
_PR_MDWE_REFUSE_EXEC_GAIN = 1

_libc = ctypes.CDLL(None, use_errno=True)


def confine(memory_bytes: int, parent_pid: int, readable: Iterable[str]) -> list[str]:
    """Confine this process for good and return the names of the protections now active.

    `readable` are the folders and files it may still read, beside Python's own library and the
    shared libraries already mapped. Exits at once if the parent is gone. Raises OSError where a
    protection that every supported kernel has is refused.
    """
    die_with(parent_pid)
    be_the_first_to_go()
    limit_resources(memory_bytes)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 0)
    active = ["pdeathsig", "rlimits", "no_new_privs", "not_dumpable"]
    with contextlib.suppress(OSError):  # since Linux 6.3
        _prctl(_PR_SET_MDWE, _PR_MDWE_REFUSE_EXEC_GAIN)
        active.append("no_new_code")
    if version := restrict_files([*readable, *_runtime_folders()]):
        active.append(f"landlock_{version}")
    if calls := filter_system_calls():
        active.append(f"seccomp ({calls} system calls)")
    return active


def die_with(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent dies, however the parent dies."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before the line above
        os._exit(0)


def be_the_first_to_go() -> None:
    """Where memory runs out the kernel kills this process, and no backend: that restarts all."""
    with contextlib.suppress(OSError):
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"1000")
        finally:
            os.close(fd)


def limit_resources(memory_bytes: int) -> None:
    """What the process may take of memory, processes, files. Root is exempt from NPROC."""
    for which, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_NOFILE, 32),
    ):
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


def allow_time(cpu_seconds: int, wall_seconds: float) -> None:
    """Start the clocks of one document. Either one running out kills this process.

    The kernel delivers both signals with their default action, so that a parser in an endless
    loop in C, or a parent too busy to look, changes nothing.
    """
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(usage.ru_utime + usage.ru_stime) + 1 + cpu_seconds
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
    signal.setitimer(signal.ITIMER_REAL, wall_seconds)


def stop_time() -> None:
    """The document is done: waiting for the next one costs nothing."""
    signal.setitimer(signal.ITIMER_REAL, 0)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl {option}: {os.strerror(error)}")


# --- Landlock: which files can be read ---------------------------------------------------------

_SYS_LANDLOCK_CREATE, _SYS_LANDLOCK_ADD, _SYS_LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_VERSION_FLAG, _LANDLOCK_PATH_BENEATH = 1, 1
_FS_READ_FILE, _FS_READ_DIR = 1 << 2, 1 << 3
# How many file rights each version of the interface knows; all are handled, so all are denied.
_FS_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}


def restrict_files(readable: Iterable[str]) -> int:
    """Deny every file but `readable`, which can only be read; where the kernel can, deny TCP too.

    Returns the version of Landlock in use, 0 where the kernel has none.
    """
    version = int(
        _libc.syscall(_SYS_LANDLOCK_CREATE, None, ctypes.c_size_t(0), _LANDLOCK_VERSION_FLAG)
    )
    if version < 1:
        return 0
    handled = [(1 << _FS_RIGHTS[min(version, 5)]) - 1]
    if version >= 4:
        handled.append(0b11)  # TCP bind and connect
    if version >= 6:
        handled.append(0b11)  # abstract sockets of others, signals to others
    attributes = struct.pack(f"={len(handled)}Q", *handled)
    ruleset = int(
        _libc.syscall(_SYS_LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)
    )
    if ruleset < 0:
        return 0
    try:
        for path in dict.fromkeys(readable):
            _allow_reading(ruleset, path)
        return version if _libc.syscall(_SYS_LANDLOCK_RESTRICT, ruleset, 0) == 0 else 0
    finally:
        os.close(ruleset)


def _allow_reading(ruleset: int, path: str) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what is not there need not be allowed
    try:
        rights = _FS_READ_FILE | (_FS_READ_DIR if os.path.isdir(path) else 0)
        rule = struct.pack("=Qi", rights, fd)
        _libc.syscall(_SYS_LANDLOCK_ADD, ruleset, _LANDLOCK_PATH_BENEATH, rule, 0)
    finally:
        os.close(fd)


def _runtime_folders() -> list[str]:
    """Python's library, and the folders that the shared libraries in use came from."""
    folders = [os.path.dirname(os.__file__), "/etc/ld.so.cache"]
    folders += [path for path in sys.path if path.endswith("lib-dynload")]
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        mapped = {line.split(maxsplit=5)[-1].strip() for line in maps}
    folders += sorted(os.path.dirname(name) for name in mapped if ".so" in os.path.basename(name))
    return folders
