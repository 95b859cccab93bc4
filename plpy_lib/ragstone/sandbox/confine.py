"""Take away from this very process all it does not need to read one document.

Runs in the child only, before any parser is imported. Every layer works without the others; which
ones the kernel has is reported, so that a health check can show it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Iterable

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SECCOMP_MODE_FILTER = 2

_libc = ctypes.CDLL(None, use_errno=True)


def confine(memory_bytes: int, parent_pid: int, readable: Iterable[str]) -> list[str]:
    """Confine this process for good and return the names of the protections now active.

    `readable` are the folders and files it may still read, beside Python's own library and the
    shared libraries already mapped. Exits at once if the parent is gone. Raises OSError where a
    protection that every supported kernel has is refused.
    """
    die_with(parent_pid)
    limit_resources(memory_bytes)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 0)
    active = ["pdeathsig", "rlimits", "no_new_privs", "not_dumpable"]
    if version := restrict_files([*readable, *_runtime_folders()]):
        active.append(f"landlock_{version}")
    if filter_system_calls():
        active.append("seccomp")
    return active


def die_with(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent dies, however the parent dies."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before the line above
        os._exit(0)


def limit_resources(memory_bytes: int) -> None:
    """Memory, processes, written files, core dumps and open files. Root is exempt from NPROC."""
    for which, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
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


# --- seccomp: which system calls can be made ---------------------------------------------------

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_AT_NUMBER, _AT_ARCH = 0, 4
_EPERM, _ENOSYS = 1, 38

# Name: number on x86_64, number on aarch64 (None: that machine has no such call).
_DENIED: dict[str, tuple[int | None, int | None]] = {
    # the network
    "socket": (41, 198), "socketpair": (53, 199), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242), "connect": (42, 203),
    # other programs and processes
    "clone": (56, 220), "fork": (57, None), "vfork": (58, None), "execve": (59, 221),
    "execveat": (322, 281), "kill": (62, 129), "tkill": (200, 130), "ptrace": (101, 117),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "setns": (308, 268),
    "unshare": (272, 97),
    # changing files, should Landlock be missing
    "creat": (85, None), "truncate": (76, 45), "mkdir": (83, None), "mkdirat": (258, 34),
    "rmdir": (84, None), "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None),
    "renameat": (264, 38), "renameat2": (316, 276), "link": (86, None), "linkat": (265, 37),
    "symlink": (88, None), "symlinkat": (266, 36), "mknod": (133, None), "mknodat": (259, 33),
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "utimensat": (280, 88), "ftruncate": (77, 46), "fallocate": (285, 47),
    "memfd_create": (319, 279), "memfd_secret": (447, 447),
    # the kernel itself
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142),
    "open_by_handle_at": (304, 265), "swapon": (167, 224), "swapoff": (168, 225),
    "setuid": (105, 146), "setgid": (106, 144), "setreuid": (113, 145), "setregid": (114, 143),
    "setresuid": (117, 147), "setresgid": (119, 149), "setgroups": (116, 159), "capset": (126, 91),
    "personality": (135, 92), "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190),
}  # fmt: skip
# Answered with "no such system call", so that the C library falls back to the filtered call.
_HIDDEN: dict[str, tuple[int | None, int | None]] = {"clone3": (435, 435), "openat2": (437, 437)}
_OPEN, _OPENAT = (2, None), (257, 56)
_TGKILL, _PRLIMIT = (234, 131), (302, 261)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Machine: index into the pairs above, audit architecture, first number of a foreign call table.
_MACHINES = {"x86_64": (0, 0xC000003E, 0x40000000), "aarch64": (1, 0xC00000B7, 0x40000000)}

_Instruction = tuple[int, int, int, int]


def filter_system_calls() -> bool:
    """Install the filter for good; False where kernel or machine do not have it."""
    program = filter_program(platform.machine(), os.getpid())
    if program is None:
        return False
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))

    class SockFprog(ctypes.Structure):
        _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    argument = SockFprog(len(program), ctypes.cast(buffer, ctypes.c_void_p))
    done = _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(argument), 0, 0)
    return bool(done == 0)


def filter_program(machine: str, own_pid: int) -> list[_Instruction] | None:
    """The filter as BPF instructions (code, jump if true, jump if false, operand), or None.

    A system call of another architecture kills. What has no place here fails with EPERM, so
    that a library which merely tries goes on.
    """
    if machine not in _MACHINES or sys.maxsize < 2**32:
        return None
    column, architecture, foreign = _MACHINES[machine]
    program: list[_Instruction] = [
        (_LOAD, 0, 0, _AT_ARCH),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _AT_NUMBER),
        (_JUMP_AT_LEAST, 0, 1, foreign),
        (_RETURN, 0, 0, _ERRNO | _EPERM),
    ]
    for numbers, error in ((_DENIED, _EPERM), (_HIDDEN, _ENOSYS)):
        for pair in numbers.values():
            if (number := pair[column]) is not None:
                program += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | error)]
    program += _if_argument(_OPEN[column], 1, (_JUMP_ANY_BIT, 1, 0, _WRITING))
    program += _if_argument(_OPENAT[column], 2, (_JUMP_ANY_BIT, 1, 0, _WRITING))
    # abort() signals its own process, the clocks are its own; those of others are not its matter
    program += _if_argument(_TGKILL[column], 0, (_JUMP_EQUAL, 0, 1, own_pid))
    program += _if_argument(_PRLIMIT[column], 0, (_JUMP_EQUAL, 0, 1, 0))
    return [*program, (_RETURN, 0, 0, _ALLOW)]


def _if_argument(number: int | None, argument: int, test: _Instruction) -> list[_Instruction]:
    """Deny call `number` where `test`, on the low half of an argument, jumps over one."""
    if number is None:
        return []
    return [
        (_JUMP_EQUAL, 0, 4, number),
        (_LOAD, 0, 0, 16 + 8 * argument),
        test,
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | _EPERM),
    ]
