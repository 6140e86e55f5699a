"""The image: the binary and nothing else."""

import subprocess
import sys
import unittest
from pathlib import Path

from chart import DEPLOY, ROOT

DOCKERFILE = DEPLOY / "Dockerfile"
TOOLS = Path(sys.executable).parent


def instructions():
    lines = DOCKERFILE.read_text().replace("\\\n", " ").splitlines()
    return [line.split(None, 1) for line in lines if line and not line.startswith("#")]


class Image(unittest.TestCase):
    def test_it_has_the_binary_and_nothing_else(self):
        found = instructions()
        self.assertEqual([rest for name, rest in found if name == "FROM"], ["scratch"])
        self.assertEqual([rest for name, rest in found if name == "COPY"], ["plsprobe /plsprobe"])
        self.assertEqual({name for name, _ in found}, {"FROM", "LABEL", "COPY", "USER", "ENTRYPOINT", "CMD"})
        self.assertIn(["ENTRYPOINT", '["/plsprobe"]'], found)

    def test_the_build_that_it_names_copies_what_dist_builds(self):
        self.assertIn("--file deploy/Dockerfile --tag REGISTRY/plsprobe:VERSION target/dist\n", DOCKERFILE.read_text())
        self.assertIn('let dist = ready.project.target.join("dist");', (ROOT / "xtask/src/dist.rs").read_text())

    def test_hadolint_finds_nothing_to_complain_of(self):
        found = subprocess.run([TOOLS / "hadolint", DOCKERFILE], capture_output=True, text=True)
        self.assertEqual((found.returncode, found.stdout), (0, ""), found.stderr)


if __name__ == "__main__":
    unittest.main()
