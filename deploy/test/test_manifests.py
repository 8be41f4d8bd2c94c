"""The manifests are what `problems` and the schemas want, keypool reads its configuration, and each
check finds what it is there for."""

import copy
import json
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

import kubernetes_validate
import yaml

import manifests
from manifests import INSTALLATIONS, KUBERNETES, OLDEST_KUBERNETES, ROOT, Installation, label

# The kinds that an operator brings, whose schema a package has; the others' schemas are in no
# registry that CI reaches.
WITH_PACKAGED_SCHEMA = {"ServiceMonitor", "PrometheusRule"}


def is_of_kubernetes(resource):
    group = resource["apiVersion"].rpartition("/")[0]
    return "." not in group or group.endswith(".k8s.io")


class Manifests(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.installations = [Installation.render(name) for name in INSTALLATIONS]

    def test_all_kustomizations_that_can_be_installed_are_looked_at(self):
        found = {
            str(file.parent.relative_to(KUBERNETES)) for file in KUBERNETES.rglob("kustomization.yaml")
        }
        self.assertEqual(found - {"base"}, set(INSTALLATIONS))

    def test_they_have_no_problem(self):
        for it in self.installations:
            with self.subTest(it.name):
                self.assertEqual(manifests.problems(it), [])

    def test_they_follow_the_schemas_of_kubernetes(self):
        # The oldest that they are for, and the newest that the validator knows.
        versions = [OLDEST_KUBERNETES, kubernetes_validate.latest_version()]
        for it in self.installations:
            known = [resource for resource in it.resources if is_of_kubernetes(resource)]
            self.assertGreater(len(known), 10)
            for version in versions:
                for resource in known:
                    with self.subTest(it.name, resource=label(resource), version=version):
                        kubernetes_validate.validate(resource, version, strict=True)
            print(f"{it.name}: {len(known)} resources follow the schemas of {' and '.join(versions)}")

    def test_the_operators_kinds_follow_their_schemas(self):
        for it in self.installations:
            others = [resource for resource in it.resources if not is_of_kubernetes(resource)]
            known = [resource for resource in others if resource["kind"] in WITH_PACKAGED_SCHEMA]
            self.operator_schemas(known)
            for resource in known:
                print(f"{it.name}: {label(resource)} follows its operator's schema")
            for resource in others:
                if resource["kind"] not in WITH_PACKAGED_SCHEMA:
                    print(f"{it.name}: {label(resource)} NOT VALIDATED: no package has its schema")

    def operator_schemas(self, resources):
        script = Path(__file__).with_name("operator-schemas.mjs")
        run = subprocess.run(
            ["node", script], input=json.dumps(resources), text=True, capture_output=True
        )
        self.assertEqual((run.returncode, run.stderr), (0, ""))

    def test_the_operators_schemas_are_used(self):
        broken = yaml.safe_load((ROOT / "deploy/monitoring/service-monitor.yaml").read_text())
        broken["spec"]["endpoints"][0]["interval"] = "15 seconds"
        with self.assertRaisesRegex(AssertionError, "interval"):
            self.operator_schemas([broken])

    def test_the_schemas_of_kubernetes_are_used(self):
        deployment = copy.deepcopy(self.installations[0].one("Deployment", "keypool"))
        deployment["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
        with self.assertRaises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(deployment, OLDEST_KUBERNETES, strict=True)


class Configuration(unittest.TestCase):
    """What the pods mount, read by the binary itself."""

    # All that may be wrong with it: nothing here is reached, which is looked at last.
    UNREACHED = {"database", "auth.jwks_url"}

    def findings(self, it, **more):
        """The keys that `keypool check` says something about, with the files of a replica in place."""
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            text = next(
                config["data"]["keypool.toml"] for config in it.of_kind("ConfigMap")
                if config["metadata"]["name"].startswith("keypool-config")
            )
            text = text.replace("/etc/keypool", str(folder))
            _, variables = it.config()
            variables = {
                key: value.replace("/etc/keypool", str(folder)) for key, value in (variables | more).items()
            }
            for name in ["config", "database", "tls", "auth"]:
                (folder / name).mkdir()
            (folder / "config/keypool.toml").write_text(text)
            (folder / "database/url").write_text("postgres://keypool_serve:x@127.0.0.1:1/keypool\n")
            self.openssl(folder / "tls", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                         "-nodes", "-keyout", "tls.key", "-out", "tls.crt", "-subj", "/CN=keypool")
            self.openssl(folder / "auth", "genpkey", "-algorithm", "ed25519", "-out", "key.pem")
            self.openssl(folder / "auth", "pkey", "-in", "key.pem", "-pubout", "-out", "auth.pub.pem")
            check = subprocess.run(
                [os.environ["KEYPOOL"], "check"], env=variables, capture_output=True, text=True
            )
            self.assertEqual(check.returncode, 1, check.stderr)
            return {line.partition(":")[0]: line for line in check.stdout.splitlines()}

    def openssl(self, folder, *arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    def test_keypool_reads_it(self):
        for name in INSTALLATIONS:
            with self.subTest(name):
                findings = self.findings(Installation.render(name))
                self.assertLessEqual(findings.keys(), self.UNREACHED, findings)

    def test_keypool_refuses_what_it_does_not_know(self):
        it = Installation.render("overlays/production")
        findings = self.findings(it, KEYPOOL_DATABASE__MAX_CONECTIONS="8")
        self.assertIn("KEYPOOL_DATABASE__MAX_CONECTIONS", findings)


class Checks(unittest.TestCase):
    """Each check finds what it is there for."""

    @classmethod
    def setUpClass(cls):
        cls.whole = Installation.render("overlays/production")

    def broken(self, break_it):
        it = copy.deepcopy(self.whole)
        break_it(it, it.one("Deployment", "keypool")["spec"]["template"]["spec"])
        return "\n".join(manifests.problems(it))

    def finds(self, expected, break_it):
        self.assertIn(expected, self.broken(break_it))

    def test_names_that_nothing_carries(self):
        def service(it, _):
            it.one("Service", "keypool")["spec"]["selector"] = {"app": "keypool"}
        self.finds("Service/keypool: selector selects no pod", service)

        def every_pod(it, _):
            it.one("Service", "keypool")["spec"]["selector"] = {"app.kubernetes.io/name": "keypool"}
        self.finds("selects pods of", every_pod)

        def policy(it, _):
            it.one("NetworkPolicy", "keypool-server")["spec"]["podSelector"]["matchLabels"]["x"] = "y"
        self.finds("NetworkPolicy/keypool-server: podSelector selects no pod", policy)

        def monitor(it, _):
            it.one("ServiceMonitor", "keypool")["spec"]["selector"]["matchLabels"] = {"x": "y"}
        self.finds("selects 0 Services", monitor)

        def scaler(it, _):
            it.one("HorizontalPodAutoscaler", "keypool")["spec"]["scaleTargetRef"]["name"] = "server"
        self.finds("which is not there", scaler)

        def spread(_, pod):
            pod["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"]["x"] = "y"
        self.finds("counts other pods", spread)

    def test_ports_that_nothing_serves(self):
        def service(it, _):
            it.one("Service", "keypool")["spec"]["ports"][0]["targetPort"] = "http"
        self.finds("no container has a port http", service)

        def monitor(it, _):
            it.one("ServiceMonitor", "keypool")["spec"]["endpoints"][0]["port"] = "http"
        self.finds("has no port http", monitor)

        def policy(it, _):
            it.one("NetworkPolicy", "keypool-server")["spec"]["ingress"][0]["ports"][0]["port"] = "http"
        self.finds("no container has a port http", policy)

        def container(_, pod):
            pod["containers"][0]["ports"][0]["containerPort"] = 50053
        self.finds("keypool listens on 50051 for grpc", container)

    def test_probes_that_ask_for_something_else(self):
        def liveness(_, pod):
            pod["containers"][0]["livenessProbe"]["grpc"]["service"] = "keypool.v1.KeyPackageService"
        self.finds("livenessProbe asks for", liveness)

        def readiness(_, pod):
            pod["containers"][0]["readinessProbe"]["grpc"]["service"] = ""
        self.finds("readinessProbe asks for", readiness)

        def port(_, pod):
            pod["containers"][0]["startupProbe"]["grpc"]["port"] = 50051
        self.finds("startupProbe asks port 50051", port)

    def test_references_to_nothing(self):
        def secret(it, _):
            it.external = [it for it in it.external if it["metadata"]["name"] != "keypool-tls"]
        self.finds("there is no Secret keypool-tls", secret)

        def unused(_, pod):
            pod["volumes"] = [volume for volume in pod["volumes"] if volume["name"] != "tls"]
        self.finds("mounts tls, which is no volume", unused)
        self.finds("Secret keypool-tls is listed as made elsewhere", unused)

        def config(it, _):
            it.resources = [it for it in it.resources if not it["metadata"]["name"].startswith("keypool-environment-")] + [
                {"kind": "ConfigMap", "metadata": {"name": "keypool-environment", "namespace": "keypool"}, "data": {}}
            ]
        self.finds("there is no ConfigMap keypool-environment-", config)

    def test_containers_that_may_do_more(self):
        def root(_, pod):
            pod["securityContext"]["runAsNonRoot"] = False
        self.finds("runAsNonRoot is not True", root)

        def token(_, pod):
            del pod["automountServiceAccountToken"]
        self.finds("gets a token", token)

        def writable(_, pod):
            pod["initContainers"][0]["securityContext"]["readOnlyRootFilesystem"] = False
        self.finds("wait-for-schema: readOnlyRootFilesystem is not True", writable)

        def capabilities(_, pod):
            pod["containers"][0]["securityContext"]["capabilities"]["add"] = ["NET_ADMIN"]
        self.finds("capabilities is not", capabilities)

        def memory(_, pod):
            del pod["containers"][0]["resources"]["limits"]
        self.finds("limits.memory is not set", memory)

    def test_images_that_differ(self):
        def another(_, pod):
            pod["containers"][0]["image"] = "registry.example.org/keypool:0.0.9"
        self.finds("keypool's containers have 2 images", another)

        def latest(_, pod):
            pod["containers"][0]["image"] = "registry.example.org/keypool"
        self.finds("has no version", latest)

    def test_ends_that_are_too_soon(self):
        def grace(_, pod):
            pod["terminationGracePeriodSeconds"] = 30
        self.finds("is killed after 30 s", grace)

        def call(it, _):
            variables = next(
                config["data"] for config in it.of_kind("ConfigMap")
                if config["metadata"]["name"].startswith("keypool-environment")
            )
            variables["KEYPOOL_SERVER__REQUEST_TIMEOUT"] = "15s"
        self.finds("calls that may take 30 s are cut off after 25 s", call)

        def sleep(_, pod):
            del pod["containers"][0]["lifecycle"]
        self.finds("stops serving before", sleep)

        def waits(_, pod):
            pod["initContainers"] = []
        self.finds("nothing waits for the migration", waits)

    def test_budgets_that_leave_nothing(self):
        def budget(it, _):
            it.one("PodDisruptionBudget", "keypool")["spec"]["maxUnavailable"] = 3
        self.finds("it keeps none", budget)

        def scaler(it, _):
            it.one("HorizontalPodAutoscaler", "keypool")["spec"]["minReplicas"] = 4
        self.finds("3 replicas are not 4 to", scaler)

        def requests(_, pod):
            del pod["containers"][0]["resources"]["requests"]["cpu"]
        self.finds("of nothing that was requested", requests)

    def test_namespaces_that_admit_more(self):
        def namespace(it, _):
            it.one("Namespace", "keypool")["metadata"]["labels"] = {}
        self.finds("enforces None", namespace)


if __name__ == "__main__":
    unittest.main()
