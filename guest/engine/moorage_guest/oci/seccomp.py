"""Docker's default system call filter, and profiles in Docker's JSON format, as the OCI runtime wants them.

The default list is data below: what is always allowed, and what a capability unlocks. Unknown names for this kernel's
architecture are skipped by the runtime.
"""

import json
import os
import platform
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from moorage_guest.errors import InvalidParameter

_ALLOW = "SCMP_ACT_ALLOW"

_ALWAYS_TEXT = """
accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32 clock_adjtime
clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64
close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old
epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat
faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat
fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs
fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat
getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer
getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit
get_robust_list getrusage getsid getsockname getsockopt get_thread_area gettid gettimeofday getuid getuid32 getxattr
getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel ioctl io_destroy io_getevents
io_pgetevents io_pgetevents_time64 ioprio_get ioprio_set io_setup io_submit ipc kill landlock_add_rule
landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listxattr listxattrat
llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack membarrier memfd_create
memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr mq_notify
mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget
msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat _newselect open openat openat2
pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64
preadv preadv2 prlimit64 process_mrelease pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read readahead readlink
readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename
renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_getaffinity sched_getattr sched_getparam
sched_get_priority_max sched_get_priority_min sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64
sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop
semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto setfsgid setfsgid32 setfsuid setfsuid32
setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid
setresuid32 setreuid setreuid32 setrlimit set_robust_list setsid setsockopt set_thread_area set_tid_address setuid
setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn
socketcall socketpair splice stat stat64 statfs statfs64 statx symlink symlinkat sync sync_file_range syncfs sysinfo
tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64
timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate truncate64
ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid
waitpid write writev process_vm_readv process_vm_writev ptrace
"""

#: Without a condition.
_ALWAYS = _ALWAYS_TEXT.split()

_ADMIN_TEXT = """
bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick listmount lookup_dcookie mount mount_setattr move_mount
open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns statmount syslog umount umount2 unshare
"""

_BY_ARCHITECTURE = {
    "amd64": ["arch_prctl", "modify_ldt"],
    "arm64": ["arm_fadvise64_64", "arm_sync_file_range", "sync_file_range2", "breakpoint", "cacheflush", "set_tls"],
}

_BY_CAPABILITY = {
    "CAP_DAC_READ_SEARCH": ["open_by_handle_at"],
    "CAP_SYS_ADMIN": _ADMIN_TEXT.split(),
    "CAP_SYS_BOOT": ["reboot"],
    "CAP_SYS_CHROOT": ["chroot"],
    "CAP_SYS_MODULE": ["delete_module", "init_module", "finit_module"],
    "CAP_SYS_PACCT": ["acct"],
    "CAP_SYS_PTRACE": ["kcmp", "pidfd_getfd", "process_madvise", "process_vm_readv", "process_vm_writev", "ptrace"],
    "CAP_SYS_RAWIO": ["iopl", "ioperm"],
    "CAP_SYS_TIME": ["settimeofday", "stime", "clock_settime", "clock_settime64"],
    "CAP_SYS_TTY_CONFIG": ["vhangup"],
    "CAP_SYS_NICE": ["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"],
    "CAP_SYSLOG": ["syslog"],
    "CAP_BPF": ["bpf"],
    "CAP_PERFMON": ["perf_event_open"],
}

#: CLONE_NEW* flags: a clone with any of them makes a namespace.
_CLONE_NAMESPACES = 0x7E020000
_AF_VSOCK = 40
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
_ENOSYS = 38

_ARCHITECTURES = {
    "amd64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "arm64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
}


@dataclass(frozen=True)
class Machine:
    """What the conditions of a profile are checked against."""

    architecture: str
    kernel: tuple[int, int]

    @classmethod
    def here(cls) -> "Machine":
        """Return the machine this runs on."""
        names = {"x86_64": "amd64", "aarch64": "arm64"}
        major, minor = os.uname().release.split(".")[:2]
        digits = "".join(character for character in minor if character.isdigit())
        return cls(names.get(platform.machine(), platform.machine()), (int(major), int(digits or 0)))


@cache
def _default(architecture: str, capabilities: frozenset[str]) -> dict[str, Any]:
    names = [*_ALWAYS, *_BY_ARCHITECTURE.get(architecture, [])]
    for capability, unlocked in _BY_CAPABILITY.items():
        if capability in capabilities:
            names += unlocked
    calls: list[dict[str, Any]] = [{"names": list(dict.fromkeys(names)), "action": _ALLOW}]
    calls.append(_with_argument("socket", 0, _AF_VSOCK, "SCMP_CMP_NE"))
    calls += [_with_argument("personality", 0, value, "SCMP_CMP_EQ") for value in _PERSONALITIES]
    if "CAP_SYS_ADMIN" not in capabilities:
        calls.append(_with_argument("clone", 0, _CLONE_NAMESPACES, "SCMP_CMP_MASKED_EQ"))
        # A C library falls back to clone on ENOSYS, and to nothing on EPERM.
        calls.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS})
    profile: dict[str, Any] = {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "syscalls": calls}
    if architecture in _ARCHITECTURES:
        profile["architectures"] = _ARCHITECTURES[architecture]
    return profile


def _with_argument(name: str, index: int, value: int, operator: str) -> dict[str, Any]:
    argument: dict[str, Any] = {"index": index, "value": value, "op": operator}
    if operator == "SCMP_CMP_MASKED_EQ":
        argument["valueTwo"] = 0
    return {"names": [name], "action": _ALLOW, "args": [argument]}


def default_profile(capabilities: Iterable[str], machine: Machine | None = None) -> dict[str, Any]:
    """Return the OCI ``seccomp`` object of Docker's default profile for a container with these capabilities."""
    return _default((machine or Machine.here()).architecture, frozenset(capabilities))


def _applies(rule: dict[str, Any], capabilities: Collection[str], machine: Machine) -> bool:
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    if includes.get("arches") and machine.architecture not in includes["arches"]:
        return False
    if any(capability not in capabilities for capability in includes.get("caps") or ()):
        return False
    if includes.get("minKernel") and _version(includes["minKernel"]) > machine.kernel:
        return False
    if machine.architecture in (excludes.get("arches") or ()):
        return False
    if any(capability in capabilities for capability in excludes.get("caps") or ()):
        return False
    return not (excludes.get("minKernel") and _version(excludes["minKernel"]) <= machine.kernel)


def _version(text: object) -> tuple[int, int]:
    parts = str(text).split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (IndexError, ValueError) as error:
        raise InvalidParameter(f"Loading seccomp profile failed: invalid kernel version {text!r}") from error


def load_profile(text: str, capabilities: Collection[str], machine: Machine | None = None) -> dict[str, Any]:
    """Turn a profile in Docker's JSON format into the OCI object, its conditions decided for this machine.

    Raises InvalidParameter, worded as dockerd does, when it is no profile.
    """
    machine = machine or Machine.here()
    try:
        source = json.loads(text)
    except ValueError as error:
        raise InvalidParameter(f"Decoding seccomp profile failed: {error}") from error
    if not isinstance(source, dict) or not isinstance(source.get("syscalls") or [], list):
        raise InvalidParameter("Decoding seccomp profile failed: the profile must be a JSON object")
    if source.get("architectures") and source.get("archMap"):
        raise InvalidParameter(
            "both 'architectures' and 'archMap' are specified in the seccomp profile, use either 'architectures' or 'archMap'"
        )
    profile: dict[str, Any] = {"defaultAction": source.get("defaultAction", ""), "syscalls": []}
    if source.get("defaultErrnoRet") is not None:
        profile["defaultErrnoRet"] = source["defaultErrnoRet"]
    for key in ("flags", "listenerPath", "listenerMetadata"):
        if source.get(key):
            profile[key] = source[key]
    if source.get("architectures"):
        profile["architectures"] = source["architectures"]
    own = _ARCHITECTURES.get(machine.architecture, [""])[0]
    for entry in source.get("archMap") or ():
        if entry.get("architecture") == own:
            profile["architectures"] = [own, *(entry.get("subArchitectures") or ())]
    for rule in source.get("syscalls") or ():
        if not isinstance(rule, dict):
            raise InvalidParameter("Decoding seccomp profile failed: each entry of syscalls must be an object")
        if rule.get("name") and rule.get("names"):
            raise InvalidParameter(
                "both 'name' and 'names' are specified in the seccomp profile, use either 'name' or 'names'"
            )
        if not _applies(rule, capabilities, machine):
            continue
        call: dict[str, Any] = {"names": rule.get("names") or [rule.get("name", "")], "action": rule.get("action", "")}
        if rule.get("errnoRet") is not None:
            call["errnoRet"] = rule["errnoRet"]
        if rule.get("args"):
            call["args"] = rule["args"]
        profile["syscalls"].append(call)
    return profile
