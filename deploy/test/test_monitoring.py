"""Alert rules fire when they should, say what to do, and name metrics that there are; so does the
dashboard."""

import itertools
import json
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

import yaml

import monitoring
from monitoring import DASHBOARD, FOLDER, RUNBOOK

TESTS = ["rules.test.yaml", "rules-days.test.yaml"]


def promtool(*arguments, cwd):
    return subprocess.run(["promtool", *arguments], cwd=cwd, capture_output=True, text=True)


class Rules(unittest.TestCase):
    def test_they_are_rules_and_fire_when_they_should(self):
        with tempfile.TemporaryDirectory() as folder:
            file = monitoring.write_plain_rules(folder)
            for name in TESTS:
                shutil.copy(FOLDER / name, folder)
            for command in (["check", "rules", file.name], ["test", "rules", *TESTS]):
                run = promtool(*command, cwd=folder)
                self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
        alerts = [rule["alert"] for rule in monitoring.rules("alert")]
        print(f"{len(alerts)} alerts, tested by promtool")

    def test_each_alert_is_seen_to_fire(self):
        expected = re.findall(r'alertname="(\w+)"', "".join((FOLDER / name).read_text() for name in TESTS))
        self.assertEqual({rule["alert"] for rule in monitoring.rules("alert")}, set(expected))

    def test_each_alert_has_its_chapter(self):
        chapters = monitoring.anchors()
        text = RUNBOOK.read_text()
        for rule in monitoring.rules("alert"):
            url, _, anchor = rule["annotations"]["runbook_url"].partition("#")
            self.assertTrue(url.endswith("/docs/runbook.md"), url)
            self.assertEqual(anchor, rule["alert"].lower())
            self.assertIn(anchor, chapters, "no such chapter in docs/runbook.md")
            chapter = text.split(f"\n### {rule['alert']}\n")[1].split("\n#")[0]
            self.assertGreater(len(chapter), 150, f"the chapter on {rule['alert']} says nothing")
            self.assertIn(rule["labels"]["severity"], {"critical", "warning"})

    def test_no_chapter_is_of_an_alert_that_is_gone(self):
        alerts = {rule["alert"] for rule in monitoring.rules("alert")}
        self.assertEqual(set(re.findall(r"^### (Keypool\w+)$", RUNBOOK.read_text(), re.M)), alerts)


class Names(unittest.TestCase):
    def test_every_metric_is_documented(self):
        self.assertGreater(len(monitoring.documented()), 40)
        self.assertGreater(sum(len(list(monitoring.selectors(it))) for _, it in monitoring.expressions()), 80)
        self.assertEqual(list(monitoring.unknown_names()), [])

    def test_what_is_not_is_found(self):
        true = monitoring.expressions
        for wrong in [
            'rate(keypool_packages_isued_total{job="keypool"}[5m])',
            'keypool_packages_issued_total{job="keypool",sort="one_time"}',
            'keypool_packages_issued_total{job="keypool",kind="one-time"}',
            'keypool_grpc_connections_sum{job="keypool"}',
        ]:
            try:
                monitoring.expressions = lambda: [("here", wrong)]
                self.assertEqual(len(list(monitoring.unknown_names())), 1, wrong)
            finally:
                monitoring.expressions = true


class Dashboard(unittest.TestCase):
    def test_its_queries_are_queries(self):
        queries = [expression for panel in monitoring.panels() for expression in panel["targets"]]
        groups = [{"name": "dashboard", "rules": [
            {"record": f"query:{number}", "expr": monitoring.plain(query["expr"])} for number, query in enumerate(queries)
        ]}]
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "queries.yaml").write_text(yaml.safe_dump({"groups": groups}))
            run = promtool("check", "rules", "queries.yaml", cwd=folder)
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
        self.assertNotIn("$", "".join(group["expr"] for group in groups[0]["rules"]).replace('"$1"', ""))
        print(f"{len(monitoring.panels())} panels, {len(queries)} queries")

    def test_its_panels_do_not_overlap(self):
        dashboard = json.loads(DASHBOARD.read_text())
        ids = [panel["id"] for panel in dashboard["panels"]]
        self.assertEqual(len(ids), len(set(ids)))
        places = [panel["gridPos"] for panel in dashboard["panels"]]
        for one, other in itertools.combinations(places, 2):
            apart = (
                one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
                or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
            )
            self.assertTrue(apart, f"{one} and {other}")
        self.assertTrue(all(place["x"] + place["w"] <= 24 for place in places))


if __name__ == "__main__":
    unittest.main()
