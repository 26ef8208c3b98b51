// Runs in the environment of the package: snippets of JavaScript from stdin, answers on stdout, a JSON object a line each.
// `g` is what snippets share; the value of a snippet is what it returns.
import * as pandastack from "@pandastack/sdk";
import { createInterface } from "node:readline";

const g = { ...pandastack };
const Snippet = Object.getPrototypeOf(async function () {}).constructor;
const say = (what) => process.stdout.write(JSON.stringify(what) + "\n");
console.log = console.warn = console.error;

for await (const line of createInterface({ input: process.stdin })) {
  const asked = JSON.parse(line);
  Object.assign(g, asked.given ?? {});
  try {
    const value = await new Snippet("g", asked.run)(g);
    say({ value: value === undefined ? null : value });
  } catch (failure) {
    const kinds = [];
    for (let each = failure?.constructor; each && each.name; each = Object.getPrototypeOf(each)) kinds.push(each.name);
    say({ raised: { kind: failure?.constructor?.name ?? "", kinds, text: String(failure?.message ?? failure), fields: { ...failure, response: undefined } } });
  }
}
