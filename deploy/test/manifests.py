"""What is wrong with rendered manifests that no schema tells: names that nothing carries, ports that
nothing serves, containers that may do more than they need.

Each check takes an `Installation` and yields a line for each problem.
"""

import re
import subprocess
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "deploy/kubernetes"

# Every key of the configuration, with its default.
SAMPLE = tomllib.loads((ROOT / "service/keypool.sample.toml").read_text())

# Each with the files that list what it refers to and does not make.
INSTALLATIONS = {
    "overlays/dev": ["overlays/dev/external.example.yaml"],
    "overlays/production": ["overlays/production/external.example.yaml"],
    "examples/cloudnative-pg": ["examples/cloudnative-pg/external.example.yaml"],
}

# What the kubelet asks with the `sleep` of preStop, and what PodDisruptionBudgets need.
OLDEST_KUBERNETES = "1.30.0"


@dataclass
class Installation:
    """What an overlay renders to, and what it expects to be there."""

    name: str
    resources: list
    external: list = field(default_factory=list)

    @classmethod
    def render(cls, name):
        rendered = subprocess.run(
            ["kubectl", "kustomize", str(KUBERNETES / name)], check=True, capture_output=True, text=True
        ).stdout
        files = [KUBERNETES / file for file in INSTALLATIONS[name]]
        external = [doc for file in files for doc in yaml.safe_load_all(file.read_text())]
        return cls(name, list(yaml.safe_load_all(rendered)), external)

    def of_kind(self, *kinds):
        return [it for it in self.resources if it["kind"] in kinds]

    def one(self, kind, name):
        found = [it for it in self.of_kind(kind) if it["metadata"]["name"] == name]
        return found[0] if found else None

    def pods(self):
        """(owner, labels, pod spec) of everything that makes pods."""
        for owner in self.of_kind("Deployment", "StatefulSet", "Job"):
            template = owner["spec"]["template"]
            yield owner, template["metadata"].get("labels", {}), template["spec"]

    def config(self):
        """keypool.toml, as the Deployment mounts it, and the variables beside it."""
        made = {it["metadata"]["name"]: it["data"] for it in self.of_kind("ConfigMap")}
        config = next(data for name, data in made.items() if name.startswith("keypool-config"))
        variables = next(data for name, data in made.items() if name.startswith("keypool-environment"))
        return tomllib.loads(config["keypool.toml"]), variables


def label(resource):
    return f"{resource['kind']}/{resource['metadata']['name']}"


def selects(selector, labels):
    """Whether a label selector, or the plain map of a Service, selects these labels."""
    if not selector:
        return True
    if not ({"matchLabels", "matchExpressions"} & selector.keys()):
        return selector.items() <= labels.items()
    plain = selector.get("matchLabels", {})
    expressions = selector.get("matchExpressions", [])
    assert all(expression["operator"] == "In" for expression in expressions), expressions
    return plain.items() <= labels.items() and all(
        labels.get(expression["key"]) in expression["values"] for expression in expressions
    )


def all_containers(pod):
    return pod.get("initContainers", []) + pod["containers"]


def served_ports(pod):
    ports = [port for container in pod["containers"] for port in container.get("ports", [])]
    return {port["name"] for port in ports}, {port["containerPort"] for port in ports}


def seconds(text):
    units = {"s": 1, "m": 60, "h": 3600}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([smh])", text))


def selectors(it):
    """Whoever selects pods by label finds some, and those of one kind only."""
    def found(who, selector, what):
        owners = [label(owner) for owner, labels, _ in it.pods() if selects(selector, labels)]
        if not owners:
            yield f"{label(who)}: {what} selects no pod"
        if who["kind"] in ("Service", "PodDisruptionBudget") and len(owners) > 1:
            yield f"{label(who)}: {what} selects pods of {', '.join(owners)}"

    for who in it.of_kind("Service"):
        yield from found(who, who["spec"]["selector"], "selector")
    for who in it.of_kind("PodDisruptionBudget"):
        yield from found(who, who["spec"]["selector"], "selector")
    for who in it.of_kind("NetworkPolicy"):
        yield from found(who, who["spec"]["podSelector"], "podSelector")
    for owner, labels, pod in it.pods():
        selector = owner["spec"].get("selector")
        if owner["kind"] != "Job" and not selects(selector, labels):
            yield f"{label(owner)}: its selector does not select its own pods"
        for spread in pod.get("topologySpreadConstraints", []):
            if not selects(spread["labelSelector"], labels):
                yield f"{label(owner)}: a topology spread counts other pods"
    for who in it.of_kind("ServiceMonitor"):
        services = [
            service for service in it.of_kind("Service")
            if selects(who["spec"]["selector"], service["metadata"].get("labels", {}))
        ]
        if len(services) != 1:
            yield f"{label(who)}: selects {len(services)} Services, not one"
        for endpoint in who["spec"]["endpoints"]:
            for service in services:
                if endpoint.get("port") not in {port["name"] for port in service["spec"]["ports"]}:
                    yield f"{label(who)}: {label(service)} has no port {endpoint.get('port')}"
        if who["spec"].get("jobLabel") not in {
            key for service in services for key in service["metadata"].get("labels", {})
        }:
            yield f"{label(who)}: jobLabel is on no Service"
    for who in it.of_kind("HorizontalPodAutoscaler"):
        target = who["spec"]["scaleTargetRef"]
        if not it.one(target["kind"], target["name"]):
            yield f"{label(who)}: scales {target['kind']}/{target['name']}, which is not there"


def ports(it):
    """Every port that something names is one that a container has, and that keypool listens on."""
    config, _ = it.config()
    listens = {
        "grpc": config["listen"], "probes": config["health"]["listen"], "metrics": config["metrics"]["listen"],
    }
    for service in it.of_kind("Service"):
        for _, labels, pod in it.pods():
            if selects(service["spec"]["selector"], labels):
                for port in service["spec"]["ports"]:
                    if port["targetPort"] not in served_ports(pod)[0]:
                        yield f"{label(service)}: no container has a port {port['targetPort']}"
    for policy in it.of_kind("NetworkPolicy"):
        named = {
            port["port"] for rule in policy["spec"].get("ingress", []) for port in rule.get("ports", [])
        }
        for _, labels, pod in it.pods():
            if selects(policy["spec"]["podSelector"], labels):
                for port in named - served_ports(pod)[0]:
                    yield f"{label(policy)}: no container has a port {port}"
    for owner, _, pod in it.pods():
        for container in pod["containers"]:
            if container["name"] != "keypool":
                continue
            declared = {port["name"]: port["containerPort"] for port in container["ports"]}
            for name, address in listens.items():
                host, _, port = address.rpartition(":")
                if declared.get(name) != int(port):
                    yield f"{label(owner)}: keypool listens on {port} for {name}, the port is {declared.get(name)}"
                if host != "0.0.0.0":
                    yield f"{label(owner)}: keypool listens on {host} for {name}, where no other pod reaches it"


def probes(it):
    """Readiness follows the database, startup and liveness do not; all ask the port for probes."""
    service = re.search(r"^package (.+);", (ROOT / "proto/keypool/v1/key_package_service.proto").read_text(), re.M)
    service = f"{service[1]}.KeyPackageService"
    expected = {"startupProbe": "", "readinessProbe": service, "livenessProbe": ""}
    config, _ = it.config()
    port = int(config["health"]["listen"].rpartition(":")[2])
    for owner, _, pod in it.pods():
        for container in pod["containers"]:
            if container["name"] != "keypool":
                continue
            for probe, asked in expected.items():
                grpc = container.get(probe, {}).get("grpc", {})
                if grpc.get("service") != asked:
                    yield f"{label(owner)}: {probe} asks for {grpc.get('service')!r}, not {asked!r}"
                if grpc.get("port") != port:
                    yield f"{label(owner)}: {probe} asks port {grpc.get('port')}, health is on {port}"


def references(it):
    """Every ConfigMap and Secret that a pod refers to is made here, or listed as made elsewhere."""
    there = {}
    for resource in it.resources + it.external:
        if resource["kind"] in ("ConfigMap", "Secret"):
            keys = resource.get("data", {}).keys() | resource.get("stringData", {}).keys()
            there[resource["kind"], resource["metadata"]["name"]] = keys
    accounts = {account["metadata"]["name"] for account in it.of_kind("ServiceAccount")}
    used = set()

    def look(owner, kind, name, keys=()):
        used.add((kind, name))
        if (kind, name) not in there:
            yield f"{label(owner)}: there is no {kind} {name}"
        else:
            for key in set(keys) - there[kind, name]:
                yield f"{label(owner)}: {kind} {name} has no {key}"

    def look_volume(owner, source):
        keys = [item["key"] for kind in ("secret", "configMap") for item in source.get(kind, {}).get("items", [])]
        if "secret" in source:
            secret = source["secret"]
            yield from look(owner, "Secret", secret.get("secretName") or secret.get("name"), keys)
        if "configMap" in source:
            yield from look(owner, "ConfigMap", source["configMap"]["name"], keys)
        for part in source.get("projected", {}).get("sources", []):
            yield from look_volume(owner, part)

    for owner, _, pod in it.pods():
        account = pod.get("serviceAccountName")
        if account and account not in accounts:
            yield f"{label(owner)}: there is no ServiceAccount {account}"
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        claims = owner["spec"].get("volumeClaimTemplates", [])
        volumes |= {claim["metadata"]["name"] for claim in claims}
        mounted = set()
        for volume in pod.get("volumes", []):
            yield from look_volume(owner, volume)
        for container in all_containers(pod):
            mounted |= {mount["name"] for mount in container.get("volumeMounts", [])}
            for source in container.get("envFrom", []):
                if "configMapRef" in source:
                    yield from look(owner, "ConfigMap", source["configMapRef"]["name"])
                if "secretRef" in source:
                    yield from look(owner, "Secret", source["secretRef"]["name"])
            for variable in container.get("env", []):
                secret = variable.get("valueFrom", {}).get("secretKeyRef")
                if secret:
                    yield from look(owner, "Secret", secret["name"], [secret["key"]])
                elif "PASSWORD" in variable["name"]:
                    yield f"{label(owner)}: {variable['name']} is written out, not taken from a Secret"
        for name in mounted - volumes:
            yield f"{label(owner)}: mounts {name}, which is no volume"
        for name in volumes - mounted:
            yield f"{label(owner)}: volume {name} is mounted nowhere"
    for cluster in it.of_kind("Cluster"):
        secrets = [cluster["spec"]["bootstrap"]["initdb"]["secret"]["name"]]
        secrets += [role["passwordSecret"]["name"] for role in cluster["spec"]["managed"]["roles"] if "passwordSecret" in role]
        for name in secrets:
            yield from look(cluster, "Secret", name, ["username", "password"])
    for kind, name in {(it["kind"], it["metadata"]["name"]) for it in it.external} - used:
        yield f"{kind} {name} is listed as made elsewhere, and nothing refers to it"


def hardening(it):
    """No container may do more than it needs."""
    for owner, _, pod in it.pods():
        security = pod.get("securityContext", {})
        for key, value in [
            ("runAsNonRoot", True), ("seccompProfile", {"type": "RuntimeDefault"}),
        ]:
            if security.get(key) != value:
                yield f"{label(owner)}: {key} is not {value}"
        if not security.get("runAsUser"):
            yield f"{label(owner)}: runAsUser is not set"
        if pod.get("automountServiceAccountToken") is not False:
            yield f"{label(owner)}: gets a token of its service account"
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.get(key):
                yield f"{label(owner)}: {key}"
        for volume in pod.get("volumes", []):
            if "hostPath" in volume:
                yield f"{label(owner)}: mounts a folder of the node"
        for container in all_containers(pod):
            name = f"{label(owner)}, {container['name']}"
            security = container.get("securityContext", {})
            for key, value in [
                ("allowPrivilegeEscalation", False),
                ("readOnlyRootFilesystem", True),
                ("capabilities", {"drop": ["ALL"]}),
            ]:
                if security.get(key) != value:
                    yield f"{name}: {key} is not {value}"
            if security.get("privileged") or security.get("runAsUser") == 0:
                yield f"{name}: is privileged, or root"
            resources = container.get("resources", {})
            for path in [("requests", "cpu"), ("requests", "memory"), ("limits", "memory")]:
                if path[1] not in resources.get(path[0], {}):
                    yield f"{name}: resources.{'.'.join(path)} is not set"


def images(it):
    """Every container of keypool is of one image, of this version."""
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    own, all_images = set(), set()
    for owner, labels, pod in it.pods():
        found = {container["image"] for container in all_containers(pod)}
        all_images |= found
        if labels.get("app.kubernetes.io/name") == "keypool":
            own |= found
    if len(own) != 1:
        yield f"keypool's containers have {len(own)} images: {', '.join(sorted(own))}"
    for image in all_images:
        name, _, tag = image.rpartition(":")
        if not name or "/" in tag or tag == "latest":
            yield f"{image}: has no version"
        if image in own and tag != version:
            yield f"{image}: the version is {version}"


def lifecycle(it):
    """What is told to end gets the time that it needs, and a rollout waits for the migration."""
    config, variables = it.config()
    configured = SAMPLE["server"] | config["server"]
    drain, call = (
        seconds(variables.get(f"KEYPOOL_SERVER__{key.upper()}", configured[key]))
        for key in ["drain_timeout", "request_timeout"]
    )
    deployment = it.one("Deployment", "keypool")
    pod = deployment["spec"]["template"]["spec"]
    sleep = pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    if not sleep:
        yield "Deployment/keypool: stops serving before balancers know"
    grace = pod["terminationGracePeriodSeconds"]
    if drain < 2 * call: # to arrive, and to be answered
        yield f"Deployment/keypool: calls that may take {2 * call} s are cut off after {drain} s"
    if grace < sleep + drain + 10:
        yield f"Deployment/keypool: is killed after {grace} s; it sleeps {sleep} and drains {drain}"
    waits = [container for container in pod.get("initContainers", []) if container["args"][0] == "wait"]
    if len(waits) != 1:
        yield "Deployment/keypool: nothing waits for the migration"
    for container in waits:
        if deployment["spec"]["progressDeadlineSeconds"] <= seconds(container["args"][-1]):
            yield "Deployment/keypool: the rollout is given up while it waits for the migration"
    rolling = deployment["spec"]["strategy"]["rollingUpdate"]
    if rolling["maxUnavailable"] != 0:
        yield "Deployment/keypool: a rollout has fewer replicas than it should"
    migrations = [job for job in it.of_kind("Job") if job["spec"]["template"]["spec"]["containers"][0]["args"] == ["migrate"]]
    if len(migrations) != 1:
        yield "there is no Job that migrates"


def replicas(it):
    """Budget and autoscaler leave replicas to serve."""
    count = it.one("Deployment", "keypool")["spec"]["replicas"]
    for budget in it.of_kind("PodDisruptionBudget"):
        spec = budget["spec"]
        if spec.get("maxUnavailable", 0) >= count or spec.get("minAvailable", 0) >= count:
            yield f"{label(budget)}: of {count} replicas it keeps none, or lets none go"
    for scaler in it.of_kind("HorizontalPodAutoscaler"):
        spec = scaler["spec"]
        if not spec["minReplicas"] <= count <= spec["maxReplicas"]:
            yield f"{label(scaler)}: {count} replicas are not {spec['minReplicas']} to {spec['maxReplicas']}"
        target = it.one(spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"])
        if not target:
            continue # selectors() says so
        container = target["spec"]["template"]["spec"]["containers"][0]
        for metric in spec["metrics"]:
            if metric["type"] == "Resource" and metric["resource"]["name"] not in container["resources"]["requests"]:
                yield f"{label(scaler)}: a utilization of nothing that was requested"


def namespaces(it):
    """Everything lies in the namespace that is made here, which admits only what is restricted."""
    made = it.of_kind("Namespace")
    names = {namespace["metadata"]["name"] for namespace in made}
    for namespace in made:
        level = namespace["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce")
        if level != "restricted":
            yield f"{label(namespace)}: enforces {level}"
    for resource in it.resources + it.external:
        if resource["kind"] != "Namespace" and resource["metadata"].get("namespace") not in names:
            yield f"{label(resource)}: is in {resource['metadata'].get('namespace')}"


CHECKS = [selectors, ports, probes, references, hardening, images, lifecycle, replicas, namespaces]


def problems(installation):
    return [problem for check in CHECKS for problem in check(installation)]
