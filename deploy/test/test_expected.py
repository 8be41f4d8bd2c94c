"""Every installation holds what it has to, and each check finds what it is there for."""

import copy
import tempfile
import unittest
from pathlib import Path

import expected
from manifests import INSTALLATIONS, Installation, label


class Expected(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.installations = {name: Installation.render(name) for name in INSTALLATIONS}

    def test_everything_is_there(self):
        self.assertEqual(set(expected.RESOURCES), set(INSTALLATIONS))
        for it in self.installations.values():
            with self.subTest(it.name):
                self.assertEqual(expected.problems(it), [])
            print(f"{it.name}: its {len(it.resources)} resources are those that it has to hold")

    def finds(self, problem, break_it):
        it = copy.deepcopy(self.installations["overlays/production"])
        break_it(it)
        self.assertIn(problem, "\n".join(expected.problems(it)))

    def test_what_is_missing_is_found(self):
        for name in expected.PRODUCTION:
            def leave_out(it, name=name):
                it.resources = [one for one in it.resources if expected.without_hash(label(one)) != name]
            self.finds(f"{name} is missing", leave_out)

        def add(it):
            it.resources.append({"kind": "Secret", "metadata": {"name": "keypool-tls"}})
        self.finds("Secret/keypool-tls is not expected", add)

    def test_metrics_that_nobody_makes_are_found(self):
        def metric(it):
            return it.one("HorizontalPodAutoscaler", "keypool")["spec"]["metrics"]

        def renamed(it):
            metric(it)[1]["pods"]["metric"]["name"] = "keypool_connections"
        self.finds("the adapter makes no keypool_connections", renamed)
        self.finds("goes by ['Resource']", lambda it: metric(it).pop())

        true = expected.documented
        try:
            expected.documented = lambda: {}
            self.finds("is no gauge of docs/metrics.md", lambda it: None)
        finally:
            expected.documented = true

    def test_configurations_that_never_change_are_found(self):
        def mount(it):
            pod = it.one("Deployment", "keypool")["spec"]["template"]["spec"]
            pod["containers"][0]["volumeMounts"][0]["subPath"] = "keypool.toml"
        self.finds("Deployment/keypool, keypool: its configuration never changes", mount)

        def immutable(it):
            it.of_kind("ConfigMap")[0]["immutable"] = True
        self.finds("nobody can edit it", immutable)

    def test_figures_are_those_of_the_measurement(self):
        self.assertEqual(list(expected.figures()), [])
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "deployment.yaml")
            quote = r"(\d+) us, some ([\d,]+) a second"
            for text, problem in [
                ("110 us, some 4,500 a second", "not 110"),
                ("54 us, some 4,500 a second", "not 4500"),
                ("it depends", "does not say"),
            ]:
                file.write_text(text)
                self.assertIn(problem, "\n".join(expected.figures({file: quote})))


if __name__ == "__main__":
    unittest.main()
