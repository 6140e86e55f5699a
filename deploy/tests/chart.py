"""The chart, rendered by Helm's own engine; and the plain manifests, which are the chart with its default values.

`python chart.py` writes deploy/kubernetes/plsprobe.yaml anew.
"""

import re
from pathlib import Path

import helm_python
import yaml

DEPLOY = Path(__file__).resolve().parent.parent
ROOT = DEPLOY.parent
CHART = DEPLOY / "helm" / "plsprobe"
MANIFESTS = DEPLOY / "kubernetes" / "plsprobe.yaml"
NAMESPACE = "kube-system"

HEADER = """\
# plsprobe's agent on every node. Written by deploy/tests/chart.py: the Helm chart with its default values.
# Before `kubectl apply -f`: put your registry's name before `image: "plsprobe:`.
"""


def templates(values=None):
    """What each template gives with these values over the default ones, by file name, as text."""
    with helm_python.Chart.load(str(CHART)) as chart:
        values = chart.merge_values(values or {})
        chart.validate_schema(values)
        rendered = chart.render(values, name="plsprobe", namespace=NAMESPACE)
    return {Path(name).name: text for name, text in rendered.items()}


def render(values=None):
    """The objects that Helm would send with these values."""
    texts = (text for name, text in templates(values).items() if name.endswith(".yaml"))
    return [obj for text in texts for obj in yaml.safe_load_all(text) if obj]


def manifests():
    """The plain manifests as they have to be."""
    order = ["serviceaccount", "rbac", "priorityclass", "daemonset"]
    texts = templates()
    parts = [texts.pop(f"{name}.yaml").strip() for name in order]
    for name, text in texts.items():
        assert name == "NOTES.txt" or not text.strip(), f"{name}: not among the plain manifests"
    # What a template says of its own branches has left empty lines.
    body = re.sub(r"\n\s*\n", "\n", "\n---\n".join(parts))
    return f"{HEADER}---\n{body}\n"


def only(objects, kind):
    """The one object of this kind."""
    (found,) = [obj for obj in objects if obj["kind"] == kind]
    return found


if __name__ == "__main__":
    MANIFESTS.write_text(manifests())
