"""The rules and the dashboard as data: which expressions they hold, and which metrics, labels and
values those name."""

import json
import re
from pathlib import Path

import yaml

from manifests import ROOT

FOLDER = ROOT / "deploy/monitoring"
RULES = FOLDER / "rules.yaml"
DASHBOARD = FOLDER / "dashboard.json"
RUNBOOK = ROOT / "docs/runbook.md"
# What Prometheus itself and the scrape bring.
OF_PROMETHEUS = {"up", "ALERTS"}
LABELS_OF_SCRAPES = {"job", "instance", "namespace", "pod", "le", "alertname", "alertstate"}


def rule_groups():
    return yaml.safe_load(RULES.read_text())["spec"]["groups"]


def rules(kind):
    return [rule for group in rule_groups() for rule in group["rules"] if kind in rule]


def panels():
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def plain(expression, rate="5m", namespace=".*"):
    """An expression of the dashboard with Grafana's variables filled in."""
    return expression.replace("$__rate_interval", rate).replace("$namespace", namespace)


def expressions():
    """(where it stands, PromQL)"""
    for rule in rules("expr"):
        yield rule.get("alert") or rule["record"], rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], plain(target["expr"])


def selectors(expression):
    """(metric, [(label, values)]) for every selector."""
    # Labels to group by look like metrics.
    expression = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", "", expression)
    for name, matchers in re.findall(r"\b([a-z][a-z0-9_:]*)\s*(?:\{([^}]*)\})", expression):
        yield name, [
            (label, values.split("|")) for label, values in re.findall(r'(\w+)\s*[=!]~?\s*"([^"]*)"', matchers)
        ]
    for name in re.findall(r"\b(keypool:[a-z0-9_:]+)", expression):
        yield name, []


def documented():
    """Each metric of docs/metrics.md, with its row."""
    found = {}
    for line in (ROOT / "docs/metrics.md").read_text().splitlines():
        if line.startswith("| `"):
            name, kind, _, labels, meaning = [cell.strip() for cell in line.strip().strip("|").split("|")]
            for metric in re.findall(r"`([a-z_]+)`", name):
                found[metric] = (kind, labels, meaning)
    return found


def unknown_names():
    """What the expressions name and docs/metrics.md does not."""
    metrics = documented()
    recorded = {rule["record"] for rule in rules("record")}
    errors = (ROOT / "docs/errors.md").read_text()
    for where, expression in expressions():
        for name, matchers in selectors(expression):
            if name in OF_PROMETHEUS | recorded:
                continue
            metric = name
            if name not in metrics:
                metric = re.sub(r"_(bucket|count|sum)$", "", name)
                if metrics.get(metric, [""])[0] != "histogram":
                    yield f"{where}: {name} is not in docs/metrics.md"
                    continue
            _, labels, meaning = metrics[metric]
            for label, values in matchers:
                if label in LABELS_OF_SCRAPES:
                    continue
                if f"`{label}`" not in labels:
                    yield f"{where}: {name} has no label {label}"
                for value in values:
                    known = meaning + labels + (errors if label == "reason" else "")
                    method = label == "rpc_method" and (value == "_OTHER" or value.startswith("keypool.v1.KeyPackageService/"))
                    if not method and value not in known:
                        yield f"{where}: {label} of {name} is never {value}"


def anchors():
    """The anchors of the runbook's chapters, as the web shows them."""
    headings = re.findall(r"^#+ (.+)$", RUNBOOK.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def write_plain_rules(folder):
    """The rules as a Prometheus without an operator reads them."""
    file = Path(folder, "rules.extracted.yaml")
    file.write_text(yaml.safe_dump({"groups": rule_groups()}))
    return file
