// Reads resources as a JSON list and ends with 1, and what is wrong, where one does not follow the
// schema of the Prometheus Operator. KEYPOOL_NODE_MODULES has the schemas.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const schemas = join(process.env.KEYPOOL_NODE_MODULES, "@kubernetes-models/prometheus-operator");
for (const resource of JSON.parse(readFileSync(0, "utf8"))) {
  const { apiVersion, kind } = resource;
  const file = pathToFileURL(join(schemas, apiVersion, `${kind}.js`));
  const { [kind]: Model } = await import(file);
  try {
    new Model(resource).validate();
  } catch (error) {
    console.error(`${kind} ${resource.metadata.name}: ${error.message}`);
    process.exitCode = 1;
  }
}
