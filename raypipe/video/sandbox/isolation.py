"""Restrict a decode child before it reads a video: its network, files, privileges, system calls and memory.

The steps are independent of each other. Each function takes one step. All functions except ``limit_memory`` return
whether the kernel allowed the step.
"""

import ctypes
import os
import platform
import resource
import signal
import struct

_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWNET = 0x00020000, 0x08000000, 0x10000000, 0x40000000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_BPF_LOAD, _BPF_JUMP_EQUAL, _BPF_JUMP_GREATER_OR_EQUAL, _BPF_JUMP_ANY_BIT, _BPF_RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_EPERM, _ENOSYS = 1, 38
# Offsets in struct seccomp_data: the architecture, the call and the lower half of its first argument.
_ARCH_OFFSET, _NUMBER_OFFSET, _ARGUMENT_OFFSET = 4, 0, 16
_CLONE_THREAD = 0x00010000
_CAPABILITY_VERSION = 0x20080522
_MAX_OPEN_FILES = 64

# Calls that a decoder never needs once its libraries are loaded, with their numbers on x86-64 and arm64 from
# asm/unistd.h. A number is None if the architecture does not have the call.
# fmt: off
_DENIED_CALLS: dict[str, tuple[int | None, int | None]] = {
    # paths
    "open": (2, None), "openat": (257, 56), "openat2": (437, 437), "creat": (85, None),
    "open_by_handle_at": (304, 265),
    # sockets
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200),
    "listen": (50, 201), "accept": (43, 202), "accept4": (288, 242),
    # programs and processes
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None),
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kill": (62, 129),
    "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "migrate_pages": (256, 238),
    "move_pages": (279, 239), "setpriority": (141, 140), "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119), "sched_setaffinity": (203, 122), "sched_setattr": (314, 274),
    "ioprio_set": (251, 30),
    # memory that outlives the process
    "shmget": (29, 194),
    # file systems and namespaces
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "unshare": (272, 97),
    "setns": (308, 268),
    # the kernel
    "bpf": (321, 280), "perf_event_open": (298, 241), "io_uring_setup": (425, 425), "add_key": (248, 217),
    "request_key": (249, 218), "keyctl": (250, 219), "userfaultfd": (323, 282),
    # changes to files
    "mknod": (133, None), "mknodat": (259, 33), "rename": (82, None), "renameat": (264, 38),
    "renameat2": (316, 276), "unlink": (87, None), "unlinkat": (263, 35), "link": (86, None),
    "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36), "truncate": (76, 45),
    "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "chmod": (90, None),
    "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None), "lchown": (94, None),
    "fchownat": (260, 54),
}
# fmt: on
_CLONE, _CLONE3, _PRLIMIT = (56, 220), (435, 435), (302, 261)
# machine -> (column in the table above, AUDIT_ARCH value from linux/audit.h)
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_X32_BIT = 0x40000000  # x86-64's second set of numbers for the same calls


def leave_network() -> bool:
    """Move this process into an empty network namespace. Call this before any library starts a thread."""
    libc = ctypes.CDLL(None, use_errno=True)
    apart = _CLONE_NEWNET | _CLONE_NEWNS | _CLONE_NEWIPC
    # A user namespace is the second choice: inside it, root cannot load files from another user's folder.
    return any(libc.unshare(flags) == 0 for flags in (apart, _CLONE_NEWUSER | apart, _CLONE_NEWNET))


def limit_memory(memory_bytes: int) -> None:
    """Limit the address space and the number of open files, and forbid core dumps and file writes.

    The limit on the address space is ``memory_bytes`` plus the space that libraries such as torch have reserved but do
    not use.
    """
    with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123  # pathlib is not loaded here
        size, resident = (int(pages) * resource.getpagesize() for pages in statm.read().split()[:2])
    cap = memory_bytes + size - resident
    resource.setrlimit(resource.RLIMIT_AS, (cap, cap))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_MAX_OPEN_FILES, _MAX_OPEN_FILES))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def leave_files() -> bool:
    """Make the current folder, which is empty, the root of the file system.

    No other file can be opened afterwards, so import all modules before this call.
    """
    try:
        os.chroot(".")
        os.chdir("/")
    except OSError:
        return False
    return True


def drop_privileges() -> bool:
    """Give up every Linux capability.

    A process in its own user namespace has all capabilities, but only within that namespace.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header, nothing = struct.pack("Ii", _CAPABILITY_VERSION, 0), bytes(24)
    return bool(libc.capset(header, nothing) == 0)


def deny_calls() -> bool:
    """Install a seccomp filter that refuses the system calls which a decoder does not need.

    These include all calls that open a path, create a socket, or start a program or a process.
    """
    if platform.machine() not in _ARCHITECTURES:
        return False
    column, audit = _ARCHITECTURES[platform.machine()]
    program = [
        _instruction(_BPF_LOAD, _ARCH_OFFSET),
        _instruction(_BPF_JUMP_EQUAL, audit, true=1),
        _instruction(_BPF_RETURN, _KILL),
        _instruction(_BPF_LOAD, _NUMBER_OFFSET),
        _instruction(_BPF_JUMP_GREATER_OR_EQUAL, _X32_BIT, false=1),
        _instruction(_BPF_RETURN, _KILL),
    ]
    for numbers in _DENIED_CALLS.values():
        number = numbers[column]
        if number is not None:
            program += [_instruction(_BPF_JUMP_EQUAL, number, false=1), _instruction(_BPF_RETURN, _ERRNO | _EPERM)]
    program += [
        # clone3 has its flags in memory, which a filter cannot read. On ENOSYS, libraries fall back to clone.
        _instruction(_BPF_JUMP_EQUAL, _CLONE3[column], false=1),
        _instruction(_BPF_RETURN, _ERRNO | _ENOSYS),
        # clone may start a thread but not a process: a process would survive when the child is killed.
        _instruction(_BPF_JUMP_EQUAL, _CLONE[column], false=4),
        _instruction(_BPF_LOAD, _ARGUMENT_OFFSET),
        _instruction(_BPF_JUMP_ANY_BIT, _CLONE_THREAD, false=1),
        _instruction(_BPF_RETURN, _ALLOW),
        _instruction(_BPF_RETURN, _ERRNO | _EPERM),
        # prlimit may change the limits of this process only.
        _instruction(_BPF_JUMP_EQUAL, _PRLIMIT[column], false=3),
        _instruction(_BPF_LOAD, _ARGUMENT_OFFSET),
        _instruction(_BPF_JUMP_EQUAL, 0, true=1),
        _instruction(_BPF_RETURN, _ERRNO | _EPERM),
        _instruction(_BPF_RETURN, _ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0) == 0)


def _instruction(code: int, value: int, *, true: int = 0, false: int = 0) -> bytes:
    """Return one BPF instruction, encoded as a ``struct sock_filter`` (linux/filter.h)."""
    return struct.pack("HBBI", code, true, false, value)
