"""The systemd unit: what systemd itself says of it, and whether it lets through what plsprobe asks of the kernel."""

import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from chart import DEPLOY
from test_chart import CAPABILITIES

UNIT = DEPLOY / "systemd" / "plsprobe-agent.service"
# `strace -f -c` of trace, doctor and explain on Linux 6.18, and what serving a socket and dropping rights adds.
SYSCALLS = """
accept4 access arch_prctl bind bpf brk capset chmod chown clone3 close connect dup2 epoll_create1 epoll_ctl epoll_wait
eventfd2 execve fcntl fstat futex getdents64 geteuid getrandom getsockname getsockopt gettid getuid ioctl listen lseek
madvise mmap mprotect mremap munmap newfstatat openat perf_event_open pipe2 poll pread64 prlimit64 read readlink
recvfrom recvmsg restart_syscall rseq rt_sigaction rt_sigprocmask rt_sigreturn sched_getaffinity sendmsg sendto
set_robust_list set_tid_address setsockopt shutdown sigaltstack socket socketpair statfs statx uname unlink wait4 write
""".split()


def analyze(*args):
    return subprocess.run(["systemd-analyze", *args], capture_output=True, text=True)


def settings(name):
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.M)


def members(name):
    """The system calls of `@name`, those of sets within it included."""
    if not name.startswith("@"):
        return {name}
    listed = [line.strip() for line in analyze("syscall-filter", name).stdout.splitlines()[1:]]
    assert listed, f"systemd-analyze knows no {name}"
    return set().union(*(members(line) for line in listed if line and not line.startswith("#")))


class Unit(unittest.TestCase):
    def test_systemd_takes_every_line(self):
        with tempfile.TemporaryDirectory() as folder:
            # Else it complains that the program is not there.
            unit = Path(folder) / UNIT.name
            unit.write_text(UNIT.read_text().replace("/usr/local/bin/plsprobe", sys.executable))
            found = analyze("verify", "--man=no", str(unit))
            self.assertEqual((found.returncode, found.stdout + found.stderr), (0, ""))
            unit.write_text(unit.read_text() + "[Service]\nProtectSystem=stricter\nNoSuchThing=yes\n")
            self.assertIn("NoSuchThing", analyze("verify", "--man=no", str(unit)).stderr)

    def test_it_is_exposed_no_more_than_it_must_be(self):
        found = analyze("security", "--offline=yes", "--threshold=25", str(UNIT))
        self.assertEqual(found.returncode, 0, found.stdout)

    def test_its_rights_are_the_daemonsets(self):
        self.assertEqual(settings("CapabilityBoundingSet"), [" ".join(f"CAP_{name}" for name in CAPABILITIES)])
        self.assertEqual(settings("NoNewPrivileges"), ["yes"])

    def test_what_it_asks_of_the_kernel_is_let_through(self):
        allowed = set()
        for line in settings("SystemCallFilter"):
            names = set().union(*map(members, line.lstrip("~").split()))
            allowed = allowed - names if line.startswith("~") else allowed | names
        self.assertEqual([name for name in SYSCALLS if name not in allowed], [])
        self.assertFalse(allowed & {"mount", "ptrace", "init_module", "reboot", "chroot", "setuid"})


if __name__ == "__main__":
    unittest.main()
