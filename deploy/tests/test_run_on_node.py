"""scripts/run-on-node with stand-ins for kubectl and ssh: what it asks of them, and that nothing stays behind."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

import yaml

from chart import ROOT
from test_chart import check_schema, forbidden_of_pod

SCRIPT = ROOT / "scripts" / "run-on-node"
SHELLS = [shell for shell in ("dash", "bash") if shutil.which(shell)]
# Both ways to a node, in each shell.
WAYS = [(shell, way) for shell in SHELLS for way in (["node-1"], ["--ssh", "user@host"])]
PATIENCE = 60
# What no shell may touch on its way.
AWKWARD = ["trace", "--dst", "svc/a b", "it's", '"$HOME" `id`', "", "*", "two\nlines", "-o", "\\n"]



def setUpModule():
    """What runs these tests may ignore signals, as `nohup` and a shell's `&` do; a shell never takes such a one back.
    One that is handled here is not ignored by what is started."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, lambda *_: None)


# Prints what it is told; `code N` exits so, `wait` runs until it is told to end, `hang` even then.
PLSPROBE = """\
#!/usr/bin/env python3
import json, os, signal, sys, time
def end(*_):
    if sys.argv[1] == "hang":
        print("does not end", flush=True)
        return
    print("detached", flush=True)
    sys.exit(1)
signal.signal(signal.SIGTERM, end)
print(json.dumps(sys.argv[1:]), flush=True)
print("to stderr", file=sys.stderr)
if sys.argv[1] == "code":
    sys.exit(int(sys.argv[2]))
if sys.argv[1] == "hang":
    print(os.getpid(), flush=True)
while sys.argv[1] in ("wait", "hang"):
    time.sleep(0.05)
"""

# A node: notes each call, and runs on this machine what it is told to run there. As kubectl and ssh do, it dies of
# Ctrl-C and takes the connection with it: what runs there sees its stdin end, and has nobody to talk to.
NODE = """\
#!{python}
import json, os, signal, subprocess, sys, threading
from pathlib import Path
signal.signal(signal.SIGINT, signal.SIG_DFL)
def run_there(command):
    there = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    def send():
        while data := os.read(0, 1 << 16):
            os.write(there.stdin.fileno(), data)
        there.stdin.close()
    threading.Thread(target=send, daemon=True).start()
    while data := os.read(there.stdout.fileno(), 1 << 16):
        os.write(1, data)
    os._exit(there.wait())
name, args, state = Path(sys.argv[0]).name, sys.argv[1:], Path("{state}")
with open(state / "calls", "a") as calls:
    calls.write(json.dumps([name, *args]) + "\\n")
os.environ["TMPDIR"] = str(state / "node")
if name == "sudo":
    os.execvp(args[1], args[1:])
if name == "chroot":
    os.execv(state / "node" / "tool" / "plsprobe", ["plsprobe", *args[2:]])
if name == "ssh":
    if (state / "unreachable").exists():
        sys.exit("ssh: connect to host: Connection refused")
    run_there(["sh", "-c", args[2]])
verb = next(word for word in args if word in ("create", "wait", "exec", "delete", "get"))
if verb == "create":
    (state / "pod.yaml").write_text(sys.stdin.read())
if (state / f"fails-{{verb}}").exists():
    sys.exit(f"error: {{verb}} refused")
if verb == "delete":
    (state / "pod.yaml").unlink(missing_ok=True)
if verb == "exec":
    os.environ["POD_UID"] = "4f1c"
    command = args[args.index("--") + 1:]
    command[2] = command[2].replace("dir=/tool", f"dir={{state}}/node/tool")
    run_there(command)
"""


class RunOnNode(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.state = Path(folder.name)
        bin = self.state / "bin"
        # Its own temporary files, and the node's.
        for path in (bin, self.state / "here", self.state / "node" / "tool"):
            path.mkdir(parents=True)
        for name in ("kubectl", "ssh", "sudo", "chroot", "id"):
            text = NODE.format(python=sys.executable, state=self.state)
            self.program(bin / name, text if name != "id" else "#!/bin/sh\necho 1000\n")
        self.program(self.state / "plsprobe", PLSPROBE)
        self.env = os.environ | {"PATH": f"{bin}:{os.environ['PATH']}", "TMPDIR": str(self.state / "here")}

    def program(self, path, text):
        path.write_text(text)
        path.chmod(0o755)

    def start(self, *args, shell="sh", terminal=None):
        command = [shell, SCRIPT, "--binary", self.state / "plsprobe", *args]
        if terminal is not None:
            # A session of its own, whose terminal this is.
            command = ["setsid", "--ctty", *command]
        return subprocess.Popen(
            command,
            env=self.env,
            text=True,
            stdin=subprocess.DEVNULL if terminal is None else terminal,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run_it(self, *args, shell="sh"):
        process = self.start(*args, shell=shell)
        stdout, stderr = process.communicate(timeout=PATIENCE)
        return process.returncode, stdout, stderr

    def calls(self, name=None):
        path = self.state / "calls"
        calls = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [call for call in calls if name in (None, call[0])]

    def assert_nothing_left(self):
        self.assertEqual(list((self.state / "here").iterdir()), [])
        # Whoever was cut off takes the binary away by itself, a moment later.
        deadline = time.monotonic() + PATIENCE
        node = lambda: [path for path in (self.state / "node").rglob("*") if path.name != "tool"]
        while node() and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertEqual(node(), [])
        self.assertFalse((self.state / "pod.yaml").exists())

    def test_arguments_arrive_as_they_are(self):
        for shell, way in WAYS:
            with self.subTest(shell=shell, way=way):
                code, stdout, stderr = self.run_it(*way, "--", *AWKWARD, shell=shell)
                self.assertEqual((code, json.loads(stdout)), (0, AWKWARD), stderr)
                self.assertIn("to stderr", stderr)
                self.assert_nothing_left()

    def test_the_exit_code_is_plsprobes(self):
        for shell, way in WAYS:
            with self.subTest(shell=shell, way=way):
                for code in (1, 2, 3):
                    self.assertEqual(self.run_it(*way, "--", "code", str(code), shell=shell)[0], code)
                self.assert_nothing_left()

    def test_a_signal_lets_it_detach_and_say_so(self):
        for shell, way in WAYS:
            with self.subTest(shell=shell, way=way):
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    process = self.start(*way, "--", "wait", shell=shell)
                    self.assertEqual(process.stdout.readline(), '["wait"]\n')
                    process.send_signal(number)
                    stdout, stderr = process.communicate(timeout=PATIENCE)
                    self.assertEqual((process.returncode, stdout), (1, "detached\n"), stderr)
                self.assert_nothing_left()

    def test_ctrl_c_at_a_terminal_does_too(self):
        for shell, way in WAYS:
            with self.subTest(shell=shell, way=way):
                ours, terminal = pty.openpty()
                process = self.start(*way, "--", "wait", shell=shell, terminal=terminal)
                self.assertEqual(process.stdout.readline(), '["wait"]\n')
                # Reaches every process in the foreground.
                os.write(ours, b"\x03")
                stdout, stderr = process.communicate(timeout=PATIENCE)
                self.assertEqual((process.returncode, stdout), (1, "detached\n"), stderr)
                os.close(ours)
                os.close(terminal)
                self.assert_nothing_left()

    def test_a_second_signal_does_not_wait(self):
        for shell, way in WAYS:
            with self.subTest(shell=shell, way=way):
                process = self.start(*way, "--", "hang", shell=shell)
                self.assertEqual(process.stdout.readline(), '["hang"]\n')
                there = int(process.stdout.readline())
                process.send_signal(signal.SIGINT)
                self.assertEqual(process.stdout.readline(), "does not end\n")
                process.send_signal(signal.SIGINT)
                self.assertNotIn(process.wait(timeout=PATIENCE), (0, 1, 2, 3))
                # Nobody waits for it but this machine's stand-in for a node.
                os.kill(there, signal.SIGKILL)
                process.communicate(timeout=PATIENCE)
                self.assert_nothing_left()

    def test_whoever_vanishes_leaves_nothing_running(self):
        for shell, way in WAYS:
            with self.subTest(shell=shell, way=way):
                process = self.start(*way, "--", "wait", shell=shell)
                process.stdout.readline()
                process.kill()
                # The far end sees its stdin end.
                self.assertEqual(process.communicate(timeout=PATIENCE)[0], "detached\n")
                # Nobody is there to delete the pod: it ends by itself.
                if (self.state / "pod.yaml").exists():
                    pod = yaml.safe_load((self.state / "pod.yaml").read_text())
                    self.assertEqual(pod["spec"]["activeDeadlineSeconds"], 4 * 3600)
                    (self.state / "pod.yaml").unlink()
                for path in (self.state / "here").iterdir():
                    shutil.rmtree(path)
                self.assert_nothing_left()

    def test_a_failure_on_the_way_leaves_no_pod(self):
        for verb in ("create", "wait", "exec"):
            for shell in SHELLS:
                with self.subTest(verb, shell=shell):
                    (self.state / f"fails-{verb}").touch()
                    code, stdout, stderr = self.run_it("node-1", "--", "doctor", shell=shell)
                    self.assertEqual(stdout, "")
                    self.assertIn(f"error: {verb} refused", stderr)
                    self.assertEqual(code, 1 if verb == "exec" else 2, stderr)
                    self.assertIn("delete", self.calls("kubectl")[-1])
                    self.assert_nothing_left()
                    (self.state / f"fails-{verb}").unlink()

    def test_a_pod_that_cannot_be_deleted_is_named(self):
        (self.state / "fails-delete").touch()
        code, _, stderr = self.run_it("node-1", "--", "code", "3")
        self.assertEqual(code, 3)
        name = yaml.safe_load((self.state / "pod.yaml").read_text())["metadata"]["name"]
        self.assertIn(f"do: kubectl -n kube-system delete pod {name}", stderr)

    def test_a_host_that_cannot_be_reached(self):
        (self.state / "unreachable").touch()
        code, _, stderr = self.run_it("--ssh", "host", "--", "doctor")
        self.assertEqual(code, 1)
        self.assertIn("Connection refused", stderr)
        self.assert_nothing_left()

    def test_it_is_root_by_sudo_or_by_itself(self):
        self.run_it("--ssh", "host", "--", "doctor")
        self.assertEqual(self.calls("sudo")[0][:3], ["sudo", "-n", "sh"])
        self.program(self.state / "bin" / "id", "#!/bin/sh\necho 0\n")
        self.assertEqual(self.run_it("--ssh", "host", "--", "doctor")[0], 0)
        self.assertEqual(len(self.calls("sudo")), 1)

    def test_the_pod_has_what_is_needed_and_no_more(self):
        self.program(self.state / "bin" / "keep", "")
        (self.state / "fails-delete").touch()
        options = ["--context", "my context", "--namespace", "tools", "--image", "registry.test:5000/busybox:1.36"]
        self.assertEqual(self.run_it(*options, "node-1", "--", "doctor")[0], 0)
        pod = yaml.safe_load((self.state / "pod.yaml").read_text())
        check_schema([pod], "1.34.0")
        # It comes from a template, with a name of its own; all else is as the DaemonSet's, but for these.
        self.assertEqual(
            forbidden_of_pod(pod["spec"]),
            [
                "capabilities {'drop': ['ALL'], 'add': ['BPF', 'PERFMON', 'NET_ADMIN', 'SYS_CHROOT']}",
                "/ read-only",
                "image registry.test:5000/busybox:1.36",
                "startupProbe",
                "livenessProbe",
                "readinessProbe",
            ],
        )
        self.assertEqual(pod["spec"]["nodeName"], "node-1")
        self.assertIs(pod["spec"]["automountServiceAccountToken"], False)
        name = pod["metadata"]["name"]
        self.assertRegex(name, r"^plsprobe-[0-9a-f]{8}$")
        for call in self.calls("kubectl"):
            self.assertEqual(call[1:5], ["--context", "my context", "--namespace", "tools"])
        verbs = [call[5:8] for call in self.calls("kubectl")]
        self.assertEqual(
            verbs,
            [
                ["create", "-f", "-"],
                ["wait", "--for=condition=Ready", f"pod/{name}"],
                ["exec", "-i", name],
                ["delete", "pod", name],
            ],
        )
        program = self.calls("chroot")[0]
        self.assertEqual(
            program[1:3], ["/host", "/var/lib/kubelet/pods/4f1c/volumes/kubernetes.io~empty-dir/tool/plsprobe"]
        )

    def test_what_makes_no_sense_is_refused_before_anything_is_asked(self):
        cases = {
            "neither a node nor": ["--", "doctor"],
            "no arguments of plsprobe's": ["node-1"],
            "unknown option `--dst`": ["node-1", "--dst", "pls-app"],
            "expected one node": ["node-1", "trace", "--", "doctor"],
            "both a node": ["node-1", "--ssh", "host", "--", "doctor"],
            "no node's name": ["node 1; x", "--", "doctor"],
            "no image's name": ["--image", "a\nb", "node-1", "--", "doctor"],
            "`--context` needs a value": ["--context"],
            "no binary at": ["--binary", "/nonexistent", "node-1", "--", "doctor"],
        }
        for message, args in cases.items():
            with self.subTest(message):
                code, _, stderr = self.run_it(*args)
                self.assertEqual(code, 2)
                self.assertIn(message, stderr)
                self.assertEqual(self.calls(), [])
                self.assert_nothing_left()

    def test_shellcheck_finds_nothing_to_complain_of(self):
        self.run_it("--ssh", "host", "--", "doctor")
        far = self.state / "far.sh"
        far.write_text("#!/bin/sh\n" + self.calls("sudo")[0][4])
        self.assertIn("mktemp", far.read_text())
        for script in (SCRIPT, far):
            command = [Path(sys.executable).parent / "shellcheck", "--shell=sh", script]
            found = subprocess.run(command, capture_output=True, text=True)
            self.assertEqual((found.returncode, found.stdout), (0, ""))


if __name__ == "__main__":
    unittest.main()
