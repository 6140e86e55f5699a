"""The DaemonSet's container, run by an OCI runtime beside the lab's datapath: what the manifests describe is enough.

PLSPROBE and PLSPROBE_LAB name the programs; `cargo xtask test` does, once they are built.
"""

import json
import os
import shutil
import stat
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from chart import only, render

PATIENCE = 120
# What a runtime's default filter refuses whatever the capabilities are that we have.
REFUSED = """
add_key chroot delete_module finit_module fsmount fsopen init_module kexec_load keyctl mount move_mount open_tree
pivot_root quotactl reboot request_key setdomainname sethostname setns swapon syslog umount2 unshare
""".split()
WITH_CAPABILITY = {"bpf": "CAP_BPF", "perf_event_open": "CAP_PERFMON"}


def lab(*args):
    return subprocess.run([os.environ["PLSPROBE_LAB"], *args], capture_output=True, text=True, timeout=PATIENCE)


class Container(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        lacks = [name for name in ("PLSPROBE", "PLSPROBE_LAB") if not Path(os.environ.get(name, "")).is_file()]
        if lacks:
            raise unittest.SkipTest(f"no {' and no '.join(lacks)}: `cargo xtask test cargo` builds them")
        cls.instance = f"c{os.getpid()}"
        up = lab("up", "--scenario", "kube-proxy", "--instance", cls.instance)
        if up.returncode != 0:
            raise unittest.SkipTest(f"the lab cannot run here: {up.stderr.strip()}")
        cls.addClassCleanup(lab, "down", "--instance", cls.instance)

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        root = self.folder / "rootfs"
        root.mkdir()
        # All that the image has.
        shutil.copy(os.environ["PLSPROBE"], root / "plsprobe")
        self.run_dir = self.folder / "run"
        self.run_dir.mkdir()
        (self.folder / "azure.json").write_text("{}")
        # Of the lab what is elsewhere on a node.
        self.node = {
            "/sys/fs/bpf": f"/run/plsprobe-lab/{self.instance}/bpf",
            "/var/run/cilium": f"/run/plsprobe-lab/{self.instance}/run",
            "/run/plsprobe": str(self.run_dir),
            "/etc/kubernetes/azure.json": str(self.folder / "azure.json"),
        }

    def spec(self, pod, args):
        """The pod's only container as a runtime is told of it; with `args` instead of its own."""
        (container,) = pod["containers"]
        context, sources = container["securityContext"], {}
        for volume in pod["volumes"]:
            path = volume["hostPath"]["path"]
            sources[volume["name"]] = os.path.realpath(self.node.get(path, path))
        mounts = [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        ]
        for mount in container["volumeMounts"]:
            options = ["rbind", "ro" if mount.get("readOnly") else "rw"]
            options.append({"HostToContainer": "rslave", None: "rprivate"}[mount.get("mountPropagation")])
            bind = {"type": "bind", "source": sources[mount["name"]], "options": options}
            mounts.append({"destination": mount["mountPath"], **bind})
        capabilities = [f"CAP_{name}" for name in context["capabilities"]["add"]]
        refused = REFUSED + [call for call, name in WITH_CAPABILITY.items() if name not in capabilities]
        user = pod["securityContext"]
        namespaces = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]
        namespaces.append({"type": "network", "path": f"/run/netns/plsprobe-{self.instance}-node"})
        return {
            "ociVersion": "1.0.2",
            "process": {
                "user": {
                    "uid": user["runAsUser"],
                    "gid": user["runAsGroup"],
                    "additionalGids": user.get("supplementalGroups", []),
                },
                "args": ["/plsprobe", *args],
                "env": ["NODE_NAME=node-1", "HOST_IP=10.224.0.4"],
                "cwd": "/",
                "capabilities": {kind: capabilities for kind in ("bounding", "effective", "permitted")},
                "noNewPrivileges": not context["allowPrivilegeEscalation"],
            },
            "root": {"path": "rootfs", "readonly": context["readOnlyRootFilesystem"]},
            "mounts": mounts,
            "linux": {
                "namespaces": namespaces,
                "rootfsPropagation": "rslave",
                "seccomp": {
                    "defaultAction": "SCMP_ACT_ALLOW",
                    "syscalls": [
                        {"names": refused, "action": "SCMP_ACT_ERRNO"},
                        # As runtimes do it: whoever asks takes `clone`, whose flags can be looked at.
                        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
                    ],
                },
            },
        }

    def crun(self, *args):
        subprocess.run(["crun", "--root", self.folder / "crun", *args], capture_output=True, timeout=PATIENCE)

    def name(self):
        return f"plsprobe-{self.instance}-{self.folder.name}"

    def start(self, *args, values=None):
        """Starts it with these arguments, or with those that the chart gives it."""
        pod = only(render(values), "DaemonSet")["spec"]["template"]["spec"]
        args = args or [arg.replace("$(NODE_NAME)", "node-1") for arg in pod["containers"][0]["args"]]
        (self.folder / "config.json").write_text(json.dumps(self.spec(pod, args)))
        # crun knows cgroups of one version at a time, and some machines mount both.
        command = "! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified; exec \"$@\""
        crun = ["crun", "--root", self.folder / "crun", "--cgroup-manager=disabled", "run", "--bundle", self.folder]
        # Whatever becomes of the test; it is gone already where all went well.
        self.addCleanup(self.crun, "delete", "--force", self.name())
        return subprocess.Popen(
            ["unshare", "--mount", "--propagation", "slave", "sh", "-c", command, "sh", *crun, self.name()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def doctor(self, values=None):
        stdout, stderr = self.start("doctor", "-o", "json", values=values).communicate(timeout=PATIENCE)
        self.assertTrue(stdout, stderr)
        return {line["what"]: line for line in map(json.loads, stdout.splitlines())}

    def test_nothing_is_missing_in_it(self):
        found = self.doctor()
        self.assertEqual([line for line in found.values() if line["status"] == "missing"], [])
        for what in ("CAP_BPF", "BTF", "agent", "monitor socket", "netfilter rules", "pod interfaces"):
            self.assertEqual(found[what]["status"], "ok", found[what])

    def test_without_the_nodes_programs_netfilter_is_not_known(self):
        found = self.doctor({"nodePrograms": False})
        self.assertEqual(found["netfilter rules"]["status"], "degraded", found["netfilter rules"])

    def test_the_agent_serves_as_it_is_told(self):
        group = 1001001
        agent = self.start(values={"socket": {"group": group}, "watch": ["pls-app"]})
        socket = self.run_dir / "agent.sock"
        deadline = time.monotonic() + PATIENCE
        while not socket.exists() or socket.stat().st_gid != group:
            self.assertIsNone(agent.poll(), "it has ended")
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.05)
        self.assertEqual((stat.S_IMODE(socket.stat().st_mode), socket.stat().st_uid), (0o660, 0))
        trace = ["trace", "--dst", "pls-app", "--agent", socket, "--count", "1", "--duration", "60s"]
        namespace = f"--net=/run/netns/plsprobe-{self.instance}-node"
        command = ["nsenter", namespace, os.environ["PLSPROBE"], *trace]
        self.check_trace(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        self.crun("kill", self.name(), "TERM")
        _, stderr = agent.communicate(timeout=PATIENCE)
        self.assertEqual(agent.returncode, 0, stderr)
        self.assertFalse(socket.exists())

    def test_a_trace_in_it_says_what_kube_proxy_did(self):
        self.check_trace(self.start("trace", "--dst", "pls-app", "--count", "1", "--duration", "60s"))

    def check_trace(self, trace):
        """Sends packets once it is attached, and looks at what it says of them."""
        said = ""
        while "verdicts come from" not in said:
            line = trace.stderr.readline()
            self.assertTrue(line, said)
            said += line
        self.assertEqual(lab("traffic", "--instance", self.instance).returncode, 0)
        stdout, stderr = trace.communicate(timeout=PATIENCE)
        self.assertEqual(trace.returncode, 1, stderr)
        self.assertIn("[PLS-03]", stdout)


if __name__ == "__main__":
    unittest.main()
