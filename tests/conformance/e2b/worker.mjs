// Runs snippets from stdin, each the body of an async function; answers on stdout. `g` is what they share.
import * as e2b from "e2b";
import readline from "node:readline";

const g = { e2b, opts: { headers: { "X-Roost-Driver": process.env.RUNG ?? "" } } };
g.sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const AsyncFunction = (async () => {}).constructor;
const lines = readline.createInterface({ input: process.stdin });
for (const name of ["log", "info", "warn"]) console[name] = (...said) => console.error(...said);

function plain(value) {
  if (value instanceof Uint8Array) return { bytes: Buffer.from(value).toString("base64") };
  return value === undefined ? null : value;
}

function kinds(failure) {
  const found = [];
  for (let each = Object.getPrototypeOf(failure); each && each !== Object.prototype; each = Object.getPrototypeOf(each))
    found.push(each.constructor.name);
  return found;
}

for await (const line of lines) {
  const asked = JSON.parse(line);
  let said;
  try {
    const value = await new AsyncFunction("g", "e2b", "given", asked.run)(g, e2b, asked.given);
    said = { value: plain(value) };
  } catch (failure) {
    const known = failure instanceof Error ? failure : new Error(String(failure));
    said = { raised: { kind: kinds(known)[0], kinds: kinds(known), text: known.message, fields: {} } };
    console.error(known.stack);
  }
  process.stdout.write(JSON.stringify(said) + "\n");
}
