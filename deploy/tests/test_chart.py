"""What the chart gives: objects that the API takes, and no right more than was shown to be needed."""

import copy
import re
import unittest

import helm_python
import kubernetes_validate
import yaml

from chart import CHART, DEPLOY, MANIFESTS, ROOT, manifests, only, render

# AKS supports three or four at a time; every one that the schemas are had of, from the chart's `kubeVersion` on.
VERSIONS = [v for v in {v.split("-")[0] for v in kubernetes_validate.utils.all_versions()} if v >= "1.27"]
# What is not of Kubernetes' own API has no schema here.
FOREIGN = {"PodMonitor"}
# docs/deploy.md says what fails without each.
CAPABILITIES = ["BPF", "PERFMON", "NET_ADMIN"]
# All that is of the node, and whether it may be written to.
HOST_PATHS = {
    "/sys/fs/bpf": "read-only",
    "/var/run/cilium": "read-only",
    "/run/netns": "read-only",
    "/run/plsprobe": "writable",
    "/usr": "read-only",
    "/lib": "read-only",
    "/lib64": "read-only",
    "/etc/kubernetes/azure.json": "read-only",
}
EVERYTHING = {
    "image": {"repository": "registry.test/plsprobe", "digest": f"sha256:{'0' * 64}"},
    "imagePullSecrets": ["pull"],
    "watch": ["svc/default/pls-app", "app=a b"],
    "socket": {"group": 1001001},
    "metrics": {"scrape": True, "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
    "listen": {"address": "$(HOST_IP):9966", "secretName": "plsprobe-tls"},
    "otlp": {"endpoint": "https://collector.test:4318"},
    "hostCaBundle": "/etc/ssl/certs/ca-certificates.crt",
    "kernelSymbols": True,
    "legacyIptables": True,
    "extraArgs": ["--ring-bytes=1048576"],
    "priorityClassName": "system-node-critical",
    "maxUnavailable": 1,
}
BARE = {"kubernetes": False, "azureJson": False, "nodePrograms": False}


def check_schema(objects, version):
    for obj in objects:
        if obj["kind"] not in FOREIGN:
            kubernetes_validate.validate(obj, version, strict=True)


def forbidden(objects):
    """What of these objects must not be: one line each. Every rule of it is seen to break in a test."""
    found = []
    for obj in objects:
        kind = obj["kind"]
        for rule in obj.get("rules", []):
            if set(rule["verbs"]) - {"get", "list", "watch"}:
                found.append(f"{kind}: verbs {rule['verbs']}")
            if "*" in rule["resources"] + rule["apiGroups"] or "secrets" in rule["resources"]:
                found.append(f"{kind}: resources {rule['resources']}")
            if "configmaps" in rule["resources"] and (rule.get("resourceNames"), kind) != (["cilium-config"], "Role"):
                found.append(f"{kind}: every ConfigMap")
        if kind == "DaemonSet":
            found += forbidden_of_pod(obj["spec"]["template"]["spec"])
    return found


def forbidden_of_pod(pod):
    found = [key for key in ("hostPID", "hostIPC", "shareProcessNamespace", "initContainers") if key in pod]
    if pod["securityContext"]["seccompProfile"] != {"type": "RuntimeDefault"}:
        found.append("seccomp")
    (container,) = pod["containers"]
    context = container["securityContext"]
    for key, wanted in (("privileged", False), ("allowPrivilegeEscalation", False), ("readOnlyRootFilesystem", True)):
        if context.get(key) is not wanted:
            found.append(key)
    if context["capabilities"] != {"drop": ["ALL"], "add": CAPABILITIES}:
        found.append(f"capabilities {context['capabilities']}")
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    for volume in pod["volumes"]:
        path = volume.get("hostPath", {}).get("path")
        state = "read-only" if mounts[volume["name"]].get("readOnly") else "writable"
        if path and HOST_PATHS.get(path) != state:
            found.append(f"{path} {state}")
    for mount in mounts.values():
        if mount.get("mountPropagation") == "Bidirectional":
            found.append(f"{mount['mountPath']} is mounted back")
    if not re.fullmatch(r"[^@:]+(:\d+\.\d+\.\d+|@sha256:[0-9a-f]{64})", container["image"].rpartition("/")[2]):
        found.append(f"image {container['image']}")
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        if "httpGet" not in container.get(probe, {}):
            found.append(probe)
    if "cpu" in container["resources"]["limits"] or "memory" not in container["resources"]["limits"]:
        found.append("limits")
    return found


class Chart(unittest.TestCase):
    def test_the_api_of_every_version_takes_it(self):
        self.assertIn("1.37.0", VERSIONS)
        for values in ({}, EVERYTHING, BARE):
            for version in VERSIONS:
                check_schema(render(values), version)

    def test_a_field_that_the_api_does_not_know_is_refused(self):
        objects = render()
        only(objects, "DaemonSet")["spec"]["template"]["spec"]["hostNetwrok"] = True
        with self.assertRaises(kubernetes_validate.ValidationError):
            check_schema(objects, "1.34.0")

    def test_the_plain_manifests_are_the_chart(self):
        self.assertEqual(
            MANIFESTS.read_text(), manifests(), "write them anew: target/tools/deploy-tests/bin/python deploy/tests/chart.py"
        )
        self.assertEqual(
            sorted(map(str, yaml.safe_load_all(MANIFESTS.read_text()))), sorted(map(str, render())), "comments lost a field"
        )

    def test_helm_finds_nothing_to_complain_of(self):
        report = helm_python.lint(str(CHART))
        messages = [message for message in report["messages"] if "icon is recommended" not in str(message)]
        self.assertEqual(messages, [])

    def test_its_version_is_the_programs(self):
        version = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
        about = yaml.safe_load((CHART / "Chart.yaml").read_text())
        self.assertEqual((about["version"], about["appVersion"]), (version, version))


class Rights(unittest.TestCase):
    def test_nothing_that_must_not_be(self):
        self.assertEqual(forbidden(render()), [])
        self.assertEqual(forbidden(render(BARE)), [])
        # What a value asks for by name, and no more.
        self.assertEqual(
            forbidden(render(EVERYTHING)),
            [
                f"capabilities {{'drop': ['ALL'], 'add': {CAPABILITIES + ['SYSLOG', 'NET_RAW']}}}",
                "/etc/ssl/certs/ca-certificates.crt read-only",
            ],
        )

    def test_each_of_these_rules_can_break(self):
        def broken(change):
            objects = copy.deepcopy(render())
            pod = only(objects, "DaemonSet")["spec"]["template"]["spec"]
            change(objects, pod, pod["containers"][0])
            return forbidden(objects)

        def rules(objects):
            return only(objects, "ClusterRole")["rules"]

        changes = {
            "verbs": lambda o, p, c: rules(o)[0]["verbs"].append("patch"),
            "resources": lambda o, p, c: rules(o)[0]["resources"].append("secrets"),
            "ConfigMap": lambda o, p, c: rules(o)[0]["resources"].append("configmaps"),
            "hostPID": lambda o, p, c: p.update(hostPID=True),
            "seccomp": lambda o, p, c: p["securityContext"].update(seccompProfile={"type": "Unconfined"}),
            "privileged": lambda o, p, c: c["securityContext"].update(privileged=True),
            "allowPrivilegeEscalation": lambda o, p, c: c["securityContext"].pop("allowPrivilegeEscalation"),
            "readOnlyRootFilesystem": lambda o, p, c: c["securityContext"].update(readOnlyRootFilesystem=False),
            "capabilities": lambda o, p, c: c["securityContext"]["capabilities"]["add"].append("SYS_ADMIN"),
            "/sys/fs/bpf writable": lambda o, p, c: c["volumeMounts"][0].update(readOnly=False),
            "/etc read-only": lambda o, p, c: p["volumes"][0].update(hostPath={"path": "/etc"}),
            "mounted back": lambda o, p, c: c["volumeMounts"][0].update(mountPropagation="Bidirectional"),
            "image": lambda o, p, c: c.update(image="registry.test:5000/plsprobe:latest"),
            "livenessProbe": lambda o, p, c: c.pop("livenessProbe"),
            "limits": lambda o, p, c: c["resources"]["limits"].update(cpu="1"),
        }
        for what, change in changes.items():
            with self.subTest(what):
                found = broken(change)
                self.assertEqual(len(found), 1, found)
                self.assertIn(what, found[0])

    def test_the_role_is_the_references(self):
        cilium = "networkpolicies clusterwidenetworkpolicies cidrgroups endpoints endpointslices identities nodes"
        expected = {
            "": {"services", "pods", "namespaces", "nodes", "events"},
            "discovery.k8s.io": {"endpointslices"},
            "networking.k8s.io": {"networkpolicies"},
            "cilium.io": {f"cilium{kind}" for kind in cilium.split()},
        }
        rules = only(render(), "ClusterRole")["rules"]
        self.assertEqual({rule["apiGroups"][0]: set(rule["resources"]) for rule in rules}, expected)
        self.assertTrue(all(rule["verbs"] == ["get", "list", "watch"] for rule in rules))
        self.assertEqual(only(render(), "Role")["metadata"]["namespace"], "kube-system")

    def test_without_kubernetes_there_is_neither_role_nor_token(self):
        objects = render(BARE)
        self.assertEqual({obj["kind"] for obj in objects}, {"ServiceAccount", "PriorityClass", "DaemonSet"})
        pod = only(objects, "DaemonSet")["spec"]["template"]["spec"]
        self.assertIs(pod["automountServiceAccountToken"], False)
        self.assertEqual([volume["name"] for volume in pod["volumes"]], ["bpffs", "cilium-run", "netns", "run"])


class Pod(unittest.TestCase):
    def pod(self, values=None):
        return only(render(values), "DaemonSet")["spec"]["template"]["spec"]

    def args(self, values=None):
        return self.pod(values)["containers"][0]["args"]

    def test_it_runs_on_every_pool_and_takes_nobodys_place(self):
        pod = self.pod()
        self.assertEqual(pod["tolerations"], [{"operator": "Exists"}])
        self.assertIs(pod["hostNetwork"], True)
        self.assertEqual(pod["dnsPolicy"], "ClusterFirstWithHostNet")
        self.assertEqual(only(render(), "PriorityClass")["preemptionPolicy"], "Never")
        self.assertEqual(pod["priorityClassName"], "plsprobe")
        self.assertEqual(self.pod(EVERYTHING)["priorityClassName"], "system-node-critical")
        self.assertNotIn("PriorityClass", [obj["kind"] for obj in render(EVERYTHING)])

    def test_mounts_that_change_later_are_seen(self):
        mounts = {mount["mountPath"]: mount for mount in self.pod()["containers"][0]["volumeMounts"]}
        for path in ("/sys/fs/bpf", "/var/run/cilium", "/run/netns"):
            self.assertEqual(mounts[path]["mountPropagation"], "HostToContainer", path)

    def test_what_it_is_told_by_default(self):
        self.assertEqual(
            self.args(),
            [
                "agent",
                "--node-name=$(NODE_NAME)",
                "--socket=/run/plsprobe/agent.sock",
                "--metrics=127.0.0.1:9967",
                "--history-bytes=8388608",
            ],
        )

    def test_what_it_is_told_with_every_value(self):
        self.assertEqual(
            self.args(EVERYTHING)[3:],
            [
                "--socket-group=1001001",
                "--metrics=127.0.0.1:9967",
                "--metrics=$(HOST_IP):9967",
                "--history-bytes=8388608",
                "--watch=svc/default/pls-app",
                "--watch=app=a b",
                "--listen=$(HOST_IP):9966",
                "--tls-cert=/etc/plsprobe/tls/tls.crt",
                "--tls-key=/etc/plsprobe/tls/tls.key",
                "--tls-client-ca=/etc/plsprobe/tls/ca.crt",
                "--otlp=https://collector.test:4318",
                "--ring-bytes=1048576",
            ],
        )
        self.assertEqual(self.pod(EVERYTHING)["securityContext"]["supplementalGroups"], [1001001], "the socket's")
        names = {env["name"] for env in self.pod()["containers"][0]["env"]}
        self.assertEqual(names, {"NODE_NAME", "HOST_IP"}, "every $(NAME) above is one of these")

    def test_the_kubelet_asks_where_it_listens(self):
        probes = ("startupProbe", "livenessProbe", "readinessProbe")
        for values in ({}, EVERYTHING):
            checks = [self.pod(values)["containers"][0][probe]["httpGet"] for probe in probes]
            self.assertEqual([check["path"] for check in checks], ["/healthz", "/healthz", "/readyz"])
            self.assertEqual([check["host"] for check in checks], ["127.0.0.1"] * 3)
            self.assertIn("--metrics=127.0.0.1:9967", self.args(values))

    def test_certificates_are_read_by_root_alone(self):
        (tls,) = [volume for volume in self.pod(EVERYTHING)["volumes"] if volume["name"] == "tls"]
        self.assertEqual(tls["secret"], {"secretName": "plsprobe-tls", "defaultMode": 0o400})
        self.assertNotIn("tls", [volume["name"] for volume in self.pod()["volumes"]])

    def test_prometheus_finds_it(self):
        objects = render(EVERYTHING)
        service, monitor = only(objects, "Service"), only(objects, "PodMonitor")
        labels = only(objects, "DaemonSet")["spec"]["template"]["metadata"]["labels"]
        for selector in (service["spec"]["selector"], monitor["spec"]["selector"]["matchLabels"]):
            self.assertLessEqual(selector.items(), labels.items())
        self.assertEqual(service["spec"]["clusterIP"], "None")
        self.assertEqual(monitor["metadata"]["labels"]["release"], "prometheus")
        alerts = (DEPLOY / "monitoring" / "alerts.yaml").read_text()
        self.assertIn(f'{{job="{labels[monitor["spec"]["jobLabel"]]}"}}', alerts)
        (port,) = only(objects, "DaemonSet")["spec"]["template"]["spec"]["containers"][0]["ports"]
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        self.assertEqual((endpoint["port"], endpoint["interval"]), (port["name"], "30s"))
        self.assertEqual(port["containerPort"], service["spec"]["ports"][0]["port"])


class Values(unittest.TestCase):
    def test_what_cannot_work_is_refused(self):
        cases = {
            "no TCP without certificates": {"listen": {"address": "127.0.0.1:9966"}},
            "no scraping of 127.0.0.1": {"metrics": {"podMonitor": {"enabled": True}}},
            "not what is newest": {"image": {"tag": "latest"}},
            "a name that is not one": {"metrics": {"prot": 9967}},
            "another that is not one": {"privileged": True},
            "no port": {"metrics": {"port": 0}},
            "no URL": {"otlp": {"endpoint": "collector:4318"}},
            "a group by name": {"socket": {"group": "adm"}},
            "nothing is ever updated": {"maxUnavailable": 0},
        }
        for what, values in cases.items():
            with self.subTest(what), self.assertRaises(helm_python.HelmError):
                render(values)

    def test_each_is_documented(self):
        def paths(value, prefix=""):
            for key, below in value.items():
                if isinstance(below, dict) and below and key not in ("resources", "nodeSelector"):
                    yield from paths(below, f"{prefix}{key}.")
                else:
                    yield f"{prefix}{key}"

        values = yaml.safe_load((CHART / "values.yaml").read_text())
        page = (ROOT / "docs" / "deploy.md").read_text()
        missing = [path for path in paths(values) if f"| `{path}` |" not in page]
        self.assertEqual(missing, [], "not in the table of docs/deploy.md")
        named = set(re.findall(r"^\| `([\w.]+)` \|", page.split("## Values")[1].split("\n## ")[0], re.M))
        self.assertEqual(named - set(paths(values)), set(), "in the table, and no value")


if __name__ == "__main__":
    unittest.main()
