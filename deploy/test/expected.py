"""What an installation has to hold, and what its numbers and names come from: what the other checks
would not miss, since they look at what is there.

Each check takes an `Installation` and yields a line for each problem.
"""

import re

import yaml

from manifests import ROOT, all_containers, label
from monitoring import FOLDER, documented

ADAPTER = FOLDER / "prometheus-adapter.yaml"
PERFORMANCE = ROOT / "docs/performance.md"
# Where the figures of docs/performance.md are repeated.
QUOTES = {
    ROOT / "deploy/kubernetes/base/deployment.yaml": r"(\d+) us of the server's CPU.*?some ([\d,]+) a second",
    ROOT / "docs/operations.md": r"half a core carries some ([\d,]+) Reserves a second at (\d+) µs",
}

BASE = {
    "ConfigMap/keypool-config",
    "ConfigMap/keypool-environment",
    "Deployment/keypool",
    "Job/keypool-migrate",
    "NetworkPolicy/keypool-egress",
    "NetworkPolicy/keypool-migration",
    "NetworkPolicy/keypool-server",
    "Service/keypool",
    "Service/keypool-headless",
    "Service/keypool-metrics",
    "ServiceAccount/keypool",
}
PRODUCTION = BASE | {
    "ConfigMap/keypool-dashboard",
    "HorizontalPodAutoscaler/keypool",
    "Namespace/keypool",
    "PodDisruptionBudget/keypool",
    "PrometheusRule/keypool",
    "ServiceMonitor/keypool",
}
RESOURCES = {
    "overlays/dev": BASE | {
        "ConfigMap/keypool-roles",
        "Namespace/keypool-dev",
        "Secret/keypool-database",
        "Secret/keypool-database-owner",
        "Secret/keypool-postgres",
        "Service/keypool-postgres",
        "StatefulSet/keypool-postgres",
    },
    "overlays/production": PRODUCTION,
    "examples/cloudnative-pg": PRODUCTION | {"Cluster/keypool-db"},
}


def without_hash(name):
    """The name of what kustomize generates, without what it adds for the content."""
    return re.sub(r"-[2456789bcdfghkmt]{10}$", "", name)


def resources(it):
    """Exactly these are there: each is worked with, or looked at, somewhere."""
    found = [without_hash(label(resource)) for resource in it.resources]
    for name in RESOURCES[it.name] - set(found):
        yield f"{it.name}: {name} is missing"
    for name in set(found) - RESOURCES[it.name]:
        yield f"{it.name}: {name} is not expected"
    for name in {name for name in found if found.count(name) > 1}:
        yield f"{it.name}: {name} is there twice"


def autoscaling(it):
    """What the autoscaler goes by is CPU, and what the adapter makes of a metric that there is."""
    rules = yaml.safe_load(ADAPTER.read_text())["rules"]["custom"]
    made = {}
    for rule in rules:
        series = re.match(r"\w+", rule["seriesQuery"])[0]
        if re.fullmatch(rule["name"]["matches"], series):
            made[rule["name"].get("as", series)] = series
    for scaler in it.of_kind("HorizontalPodAutoscaler"):
        metrics = scaler["spec"]["metrics"]
        if sorted(metric["type"] for metric in metrics) != ["Pods", "Resource"]:
            yield f"{label(scaler)}: goes by {[metric['type'] for metric in metrics]}"
        for metric in metrics:
            if metric["type"] == "Pods":
                name = metric["pods"]["metric"]["name"]
                kind = documented().get(made.get(name), [None])[0]
                if name not in made:
                    yield f"{label(scaler)}: the adapter makes no {name}"
                elif kind != "gauge":
                    yield f"{label(scaler)}: {made[name]} is no gauge of docs/metrics.md"


def followed(it):
    """Replicas follow a ConfigMap that is edited: a mount of one file (subPath) never changes."""
    for config in it.of_kind("ConfigMap"):
        if config.get("immutable"):
            yield f"{label(config)}: nobody can edit it"
    for owner, _, pod in it.pods():
        for container in all_containers(pod):
            for mount in container.get("volumeMounts", []):
                if mount["name"] == "config" and ("subPath" in mount or "subPathExpr" in mount):
                    yield f"{label(owner)}, {container['name']}: its configuration never changes"


def figures(quotes=QUOTES):
    """What is said of the cost of a Reserve is what was measured last."""
    rows = re.findall(r"^\| `reserve` \| 64 \|(.*)\|$", PERFORMANCE.read_text(), re.M)
    columns = re.search(r"^\| row \| connections \|(.*)\|$", PERFORMANCE.read_text(), re.M)[1]
    place = [column.strip() for column in columns.split("|")].index("CPU server")
    measured = int(rows[0].split("|")[place])
    for file, quote in quotes.items():
        found = re.search(quote, file.read_text().replace("\n          # ", " ").replace("\n  ", " "), re.S)
        if not found:
            yield f"{file.name}: does not say what a Reserve costs"
            continue
        said = sorted(int(number.replace(",", "")) for number in found.groups())
        if said[0] != measured:
            yield f"{file.name}: a Reserve takes {measured} us, not {said[0]}"
        if abs(said[1] * measured / 500_000 - 1) > 0.05:
            yield f"{file.name}: half a core carries {500_000 // measured} Reserves/s, not {said[1]}"


CHECKS = [resources, autoscaling, followed]


def problems(installation):
    return [problem for check in CHECKS for problem in check(installation)]
