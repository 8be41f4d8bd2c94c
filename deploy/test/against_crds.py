"""Validates what the manifests render to against CustomResourceDefinitions at hand, strictly: unknown
fields are errors, as with `kubectl apply --validate=strict`.

    python3 deploy/test/against_crds.py FILE...

FILE is YAML with definitions, such as the release manifest of an operator. Rules written in CEL are
not evaluated.
"""

import sys

import jsonschema
import yaml

from manifests import INSTALLATIONS, Installation, label


def strict(schema):
    """The schema, refusing what it does not name, as the API server does in strict validation."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
    return result


def definitions(files):
    for file in files:
        with open(file, encoding="utf-8") as text:
            for doc in yaml.safe_load_all(text):
                if doc and doc["kind"] == "CustomResourceDefinition":
                    for version in doc["spec"]["versions"]:
                        name = f"{doc['spec']['group']}/{version['name']}"
                        yield (name, doc["spec"]["names"]["kind"]), version["schema"]["openAPIV3Schema"]


def main(files):
    schemas = dict(definitions(files))
    validated = failed = 0
    for name in INSTALLATIONS:
        for resource in Installation.render(name).resources:
            schema = schemas.get((resource["apiVersion"], resource["kind"]))
            if not schema:
                continue
            schema = strict(schema)
            schema["properties"]["metadata"] = {"type": "object"}
            errors = list(jsonschema.Draft202012Validator(schema).iter_errors(resource))
            for error in errors:
                print(f"{name}: {label(resource)}: {error.json_path}: {error.message}")
            validated += 1
            failed += bool(errors)
    print(f"{validated} resources validated against {len(schemas)} definitions, {failed} with errors")
    return 1 if failed or not validated else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
