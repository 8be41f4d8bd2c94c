"""The compose file is one, its parts are there and held to what they need, and keypool reads its
configuration."""

import copy
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

import compose_spec
import yaml

import manifests
from manifests import ROOT

FILE = ROOT / "deploy/compose.yaml"


class Compose(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.compose = yaml.safe_load(FILE.read_text())
        cls.own = {name: it for name, it in cls.compose["services"].items() if "build" in it}

    def test_it_follows_the_specification(self):
        parsed = self.parse(self.compose)
        parsed.validate()
        self.assertEqual(set(parsed.service_names()), {"postgres", "migrate", "keypool"})

    def test_the_specification_is_looked_at(self):
        broken = copy.deepcopy(self.compose)
        broken["services"]["keypool"]["stop_grace_period"] = "forty"
        with self.assertRaisesRegex(ValueError, "stop_grace_period"):
            self.parse(broken)

    def parse(self, compose):
        return compose_spec.PyCompose.from_yaml(yaml.safe_dump(compose))  # without merge keys

    def test_what_it_mounts_is_there_or_made_first(self):
        made = {"./compose/auth.pub.pem"}
        self.assertTrue(all(path in FILE.read_text().split("\nname:")[0] for path in ["deploy/compose/auth.pub.pem"]))
        for service in self.compose["services"].values():
            for volume in service["volumes"]:
                if volume["type"] == "bind" and volume["source"] not in made:
                    self.assertTrue((FILE.parent / volume["source"]).is_file(), volume["source"])
                if volume["type"] == "volume":
                    self.assertIn(volume["source"], self.compose["volumes"])

    def test_the_schema_comes_first_and_containers_may_little(self):
        self.assertEqual(set(self.own), {"migrate", "keypool"})
        conditions = {
            name: {on: how["condition"] for on, how in it["depends_on"].items()} for name, it in self.own.items()
        }
        self.assertEqual(conditions, {
            "migrate": {"postgres": "service_healthy"},
            "keypool": {"migrate": "service_completed_successfully"},
        })
        for name, it in self.own.items():
            self.assertEqual((it["user"], it["read_only"], it["cap_drop"]), ("65532:65532", True, ["ALL"]), name)
            self.assertEqual((it["build"]["context"], it["build"]["dockerfile"]), ("..", "deploy/Dockerfile"))

    def test_what_is_told_to_end_gets_the_time_that_it_needs(self):
        configured = manifests.tomllib.loads((FILE.parent / "compose/keypool.toml").read_text())
        drain = (manifests.SAMPLE["server"] | configured.get("server", {}))["drain_timeout"]
        grace = manifests.seconds(self.own["keypool"]["stop_grace_period"])
        self.assertGreaterEqual(grace, manifests.seconds(drain) + 10)

    def test_ports_are_for_this_machine_only(self):
        for it in self.compose["services"].values():
            for port in it.get("ports", []):
                self.assertTrue(port.startswith("127.0.0.1:"), port)

    def test_keypool_reads_its_configuration(self):
        with tempfile.TemporaryDirectory() as folder:
            key = Path(folder, "key.pem")
            subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True, capture_output=True)
            public = Path(folder, "auth.pub.pem")
            subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", public], check=True, capture_output=True)
            text = (FILE.parent / "compose/keypool.toml").read_text()
            config = Path(folder, "keypool.toml")
            config.write_text(text.replace("/etc/keypool/auth", folder))
            environment = dict(self.own["keypool"]["environment"])
            environment["KEYPOOL_DATABASE__URL"] = environment["KEYPOOL_DATABASE__URL"].replace("@postgres:5432", "@127.0.0.1:1")
            run = subprocess.run(
                [os.environ["KEYPOOL"], "check", "--config", config], env=environment, capture_output=True, text=True
            )
            findings = [line.partition(":")[0] for line in run.stdout.splitlines()]
            self.assertEqual((run.returncode, findings), (1, ["database"]), run.stdout + run.stderr)


if __name__ == "__main__":
    unittest.main()
