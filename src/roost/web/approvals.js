// Follows what waits for approval and decides on it, with a key that stays in this tab.
//
//   enter(key) --> follow: stream, again and again --> show(approval) --> card --> decide --> past
//        ^------- 401, 403, "Forget key" -------'
//
// Whoever asks wrote all of it and wants a yes: it becomes text nodes (inert), never markup, and is shown whole.

const KEPT = "roost.key";
const SILENT_MS = 45_000; // the daemon says something every 15 s
const MOST_WAIT_MS = 30_000;
const LINGER_MS = 5_000; // what was decided keeps its place, so that nothing moves below the pointer
const FOCUSED_MS = 60_000; // and longer where the reader still is
const SETTLE_MS = 700; // after the list moved, clicks were meant for what was there before
const PAST_MS = 10 * 60_000;
const PAST = 30;

const $ = (id) => document.getElementById(id);
const cards = new Map(); // id -> Card, of what waits or was decided just now
const names = new Map(); // id of a machine or a key -> its name
const mine = new Set(); // decided here
let session = null; // an AbortController with the key it is for
let skew = 0; // the daemon's clock minus ours
let moved = -SETTLE_MS;
const title = document.title;

// --- text ------------------------------------------------------------------------------------

// What has no look of its own, or changes the look of what is beside it (marks in heaps, too); runs are told as one.
const ODD = /(?! )([\p{C}\p{Z}\p{Default_Ignorable_Code_Point}\u2800])\1*|( ) {64,}|(\p{M})\p{M}{3,}/gu;
const FAR = /[^\x00-\x7f]+/g; // letters of other alphabets can look like those of a program's name
const SHORT = { "\n": "↵", "\t": "⇥", "\r": "\\r", "\0": "\\0", "\x1b": "ESC", " ": "space" };

function make(tag, kind, ...children) {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  made.append(...children);
  return made;
}

function inert(text) {
  const parts = document.createDocumentFragment();
  let from = 0;
  for (const found of text.matchAll(ODD)) {
    parts.append(...underlined(text.slice(from, found.index)));
    from = found.index + found[0].length;
    const one = found[1] ?? found[2] ?? found[3];
    const times = found[0].length / one.length;
    const name = SHORT[one] ?? "U+" + one.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    if (one === "\n" && times < 4) {
      for (let n = 0; n < times; n++) parts.append(make("span", "mark", name), "\n");
    } else {
      parts.append(make("span", "mark", times > 1 ? `${name} ×${times}` : name), one === "\n" ? "\n" : "");
    }
  }
  parts.append(...underlined(text.slice(from)));
  return parts;
}

function underlined(text) {
  const parts = [];
  let from = 0;
  for (const { 0: far, index } of text.matchAll(FAR)) {
    parts.push(text.slice(from, index), make("span", "far", far));
    from = index + far.length;
  }
  return [...parts, text.slice(from)];
}

const code = (text, kind) => make("code", kind, text === "" ? make("span", "mark", "empty") : inert(text));
const aside = (text) => make("span", "hint", text);

function named(id) {
  const name = names.get(id);
  const whole = make("span", "named");
  if (name) whole.append(make("bdi", "", inert(name)), " ");
  whole.append(code(id ?? "nobody known", "id"));
  return whole;
}

function minutes(seconds) {
  const s = Math.max(0, Math.round(seconds));
  const two = (n) => String(n).padStart(2, "0");
  return s < 3600 ? `${Math.floor(s / 60)}:${two(s % 60)}` : `${Math.floor(s / 3600)} h ${two(Math.floor((s % 3600) / 60))} min`;
}

// --- the API ---------------------------------------------------------------------------------

class Refused extends Error {
  constructor(status, said) {
    super(typeof said?.message === "string" ? said.message : "The daemon gave no reason.");
    this.status = status;
    this.code = typeof said?.error_code === "string" ? said.error_code : `HTTP ${status}`;
  }
}

function told(problem, failure, before = "") {
  problem.replaceChildren(before, inert(failure.message));
  if (failure instanceof Refused) problem.append(" ", code(failure.code, "code"));
  problem.hidden = false;
}

async function send(to, method, path, body, signal) {
  const headers = { Authorization: `Bearer ${to.key}` };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, {
    method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body),
    cache: "no-store", credentials: "omit", redirect: "error", referrerPolicy: "no-referrer",
  });
  const off = Date.parse(answer.headers.get("date")) - Date.now();
  skew = Math.abs(off) > 3000 ? off : 0;
  if (!answer.ok) throw new Refused(answer.status, await answer.json().catch(() => null));
  return answer;
}

async function call(to, method, path, body) {
  const signal = AbortSignal.any([to.signal, AbortSignal.timeout(30_000)]);
  return (await send(to, method, path, body, signal)).json();
}

// Server-sent events, until the daemon ends them or says nothing for too long.
async function stream(to, path, opened, event) {
  const own = new AbortController();
  const signal = AbortSignal.any([to.signal, own.signal]);
  let timer;
  const alive = () => {
    clearTimeout(timer);
    timer = setTimeout(() => own.abort(new Error("The daemon says nothing any more.")), SILENT_MS);
  };
  alive();
  try {
    const answer = await send(to, "GET", path, undefined, signal);
    opened();
    const text = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await text.read();
      if (done) return;
      alive();
      const pieces = (rest + value).split("\n\n");
      rest = pieces.pop();
      for (const piece of pieces) {
        const fields = {};
        for (const line of piece.split("\n")) {
          const colon = line.indexOf(": ");
          if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 2);
        }
        if (fields.data) event(fields.event, JSON.parse(fields.data));
      }
    }
  } finally {
    clearTimeout(timer);
  }
}

const at = (id) => `/v1/approvals/${encodeURIComponent(id)}`;

// --- the key ---------------------------------------------------------------------------------

function enter(key) {
  session = Object.assign(new AbortController(), { key, may: true });
  $("enter").hidden = true;
  $("key").value = "";
  $("problem").hidden = true;
  $("forget").hidden = false;
  follow(session);
}

function leave(failure) {
  session?.abort();
  session = null;
  sessionStorage.removeItem(KEPT);
  cards.clear();
  names.clear();
  mine.clear();
  for (const list of [$("list"), $("past")]) list.replaceChildren();
  for (const gone of ["waits", "decided", "forget", "problem"]) $(gone).hidden = true;
  $("enter").hidden = false;
  $("key").value = "";
  link("");
  count();
  if (failure) told($("problem"), failure, "This key does not open it: ");
  $("key").focus();
}

// The prefix only chooses whose API answers: ours is wanted here.
const native = (key) => key.replace(/^.*_(?=[0-9a-f]{64}$)/, "roost_");

// --- what waits ------------------------------------------------------------------------------

async function follow(own) {
  let wait = 1000;
  while (!own.signal.aborted) {
    link("Connecting …", "busy");
    let why = "The connection ended";
    const before = [...cards.values()].filter((card) => card.pending);
    try {
      await stream(own, "/v1/approvals/stream", () => {
        wait = 1000;
        opened(own, before);
      }, (name, data) => {
        if (own.signal.aborted) return;
        if (name === "approval") show(own, data);
        else if (name === "error") why = `${new Refused(0, data).message} [${data.error_code}]`;
      });
    } catch (failure) {
      if (own.signal.aborted) return;
      if (failure.status === 401 || failure.status === 403) return leave(failure);
      why = failure instanceof Refused ? `${failure.message} [${failure.code}]` : "The daemon does not answer";
    }
    if (own.signal.aborted) return;
    const pause = wait * (0.75 + Math.random() / 2);
    wait = Math.min(wait * 2, MOST_WAIT_MS);
    link(`${why.replace(/\.$/, "")}. Trying again in ${Math.ceil(pause / 1000)} s.`, "lost");
    await new Promise((done) => setTimeout(done, pause));
  }
}

function opened(own, before) {
  sessionStorage.setItem(KEPT, own.key);
  $("waits").hidden = false;
  link("Live", "live");
  for (const card of before) look(own, card); // decided while nobody listened: the stream does not say it again
  call(own, "GET", "/v1/keys").then((found) => {
    for (const each of found.items) learn(each.key_id, each.name);
  }, () => {});
  $("nothing").hidden = true;
  setTimeout(count, 300); // what waits comes at once, if anything does
}

async function look(own, card) {
  try {
    show(own, await call(own, "GET", at(card.approval.approval_id)));
  } catch (failure) {
    if (failure.code === "APPROVAL_NOT_FOUND") drop(card);
  }
}

function learn(id, name) {
  if (typeof name !== "string" || !name || names.get(id) === name) return;
  names.set(id, name);
  for (const card of cards.values()) card.names();
}

function show(own, approval) {
  if (own.signal.aborted) return;
  const card = cards.get(approval.approval_id);
  if (card) {
    card.update(approval);
  } else if (approval.status === "pending") {
    const made = new Card(own, approval);
    cards.set(approval.approval_id, made);
    $("list").append(made.element);
    if (!names.has(approval.machine_id)) {
      names.set(approval.machine_id, "");
      call(own, "GET", `/v1/machines/${encodeURIComponent(approval.machine_id)}`).then(
        (machine) => learn(machine.machine_id, machine.name ?? machine.key), () => {});
    }
    news();
  }
  count();
}

function drop(card) {
  if (!card.element.isConnected) return;
  card.element.remove();
  cards.delete(card.approval.approval_id);
  moved = performance.now();
  count();
}

function count() {
  const waiting = [...cards.values()].filter((card) => card.pending).length;
  $("waiting").textContent = waiting ? `Waiting (${waiting})` : "Waiting";
  $("nothing").hidden = cards.size > 0;
  document.title = (waiting ? `(${waiting}) ` : "") + title;
}

let fresh = 0;
function news() {
  fresh += 1;
  if (fresh > 1) return;
  setTimeout(() => {
    say(fresh > 1 ? `${fresh} more commands wait for approval.` : "A command waits for approval.");
    fresh = 0;
  }, 300);
}

function say(text) {
  $("news").replaceChildren(inert(text));
}

function link(text, kind = "") {
  const shown = $("link");
  shown.replaceChildren(inert(text));
  shown.dataset.kind = kind;
}

// --- one approval ----------------------------------------------------------------------------

class Card {
  constructor(own, approval) {
    this.own = own;
    this.approval = approval;
    this.ended = 0; // when it was seen to be decided
    this.element = $("card").content.firstElementChild.cloneNode(true);
    this.part = (which) => this.element.querySelector(which);
    this.part("h3").id = `of-${approval.approval_id}`;
    this.element.setAttribute("aria-labelledby", `of-${approval.approval_id}`);
    this.part(".asked").append(asked(approval));
    this.part(".decide").addEventListener("submit", (event) => event.preventDefault()); // Enter decides nothing
    for (const button of this.element.querySelectorAll("button")) {
      button.addEventListener("click", (event) => this.decide(button.dataset.what, event));
    }
    this.names();
    this.tick();
    this.able();
  }

  get pending() {
    return this.approval.status === "pending";
  }

  names() {
    this.part("h3").replaceChildren("Machine ", named(this.approval.machine_id));
    const when = new Date(this.approval.created_at);
    this.part(".asked-by").replaceChildren("Asked by ", named(this.approval.asked_by), ` at ${when.toLocaleTimeString()}`);
    if (!this.pending) this.part(".outcome").replaceChildren(...outcome(this.approval));
  }

  tick() {
    const left = this.part(".left");
    const seconds = (Date.parse(this.approval.expires_at) - Date.now() - skew) / 1000;
    left.textContent = !this.pending ? "" : seconds > 0 ? `${minutes(seconds)} left` : "time is over";
    left.classList.toggle("soon", seconds <= 60);
    const here = this.element.matches(":hover, :focus-within");
    if (this.ended && Date.now() - this.ended > (here ? FOCUSED_MS : LINGER_MS)) retire(this);
  }

  able(busy = false) {
    this.busy = busy;
    this.element.setAttribute("aria-busy", String(busy));
    for (const control of this.element.querySelectorAll(".decide button, .decide input")) {
      control.disabled = busy || !this.own.may;
    }
  }

  async decide(what, event) {
    if (!this.pending || this.busy) return;
    const button = event.currentTarget;
    const problem = this.part(".problem");
    if (event.detail > 1 || (event.detail && performance.now() - moved < SETTLE_MS)) {
      told(problem, new Error("The list has just moved below the pointer: nothing was decided. Press again."));
      return;
    }
    const note = this.part("input").value.trim();
    problem.hidden = true;
    this.able(true);
    try {
      mine.add(this.approval.approval_id);
      const done = await call(this.own, "POST", `${at(this.approval.approval_id)}/${what}`, note ? { note } : {});
      this.update(done);
      this.part(".outcome").focus({ preventScroll: true });
      count();
    } catch (failure) {
      if (this.own.signal.aborted) return;
      mine.delete(this.approval.approval_id);
      this.names();
      if (failure.status === 401) return leave(failure);
      if (failure.code === "FORBIDDEN") this.own.may = false;
      if (failure instanceof Refused) {
        told(problem, failure, this.own.may ? "" : "This key may look and not decide: ");
        if (!this.own.may) cards.forEach((card) => card.able());
      } else {
        told(problem, new Error("The daemon did not answer: whether it was decided is not known yet."));
      }
      await look(this.own, this);
    } finally {
      this.able();
      if (this.pending && !button.disabled) button.focus();
    }
  }

  update(approval) {
    if (!this.pending) return; // once, and for good
    this.approval = approval;
    if (this.pending) return;
    this.ended = Date.now();
    moved = performance.now();
    const inside = this.part(".decide").contains(document.activeElement);
    this.element.classList.add("over", approval.status);
    this.part(".decide").hidden = true;
    this.part(".outcome").hidden = false;
    this.names();
    this.tick();
    if (inside) this.part(".outcome").focus({ preventScroll: true });
    else say(this.part(".outcome").textContent);
  }
}

const STATUS = {
  approved: "Approved",
  denied: "Denied",
  expired: "Expired: nobody decided in time",
  cancelled: "Given up by who asked, or its machine ended",
};

function outcome(approval) {
  const said = [make("strong", "", STATUS[approval.status] ?? approval.status)];
  if (approval.decided_by) said.push(" by ", ...(mine.has(approval.approval_id) ? ["you"] : [named(approval.decided_by)]));
  if (approval.note) said.push(": ", make("q", "", make("bdi", "", inert(approval.note))));
  return said;
}

// All that is asked for. What is private of it is not told any more once it is decided.
function asked({ asked: it, status }) {
  const list = make("dl");
  const row = (term, ...what) => list.append(make("dt", "", term), make("dd", "", ...what));
  const argv = make("ol", "argv");
  for (const word of it.command) argv.append(make("li", "", code(word)));
  row("Command", argv);
  row("Directory", it.cwd === null ? aside("the machine's own") : code(it.cwd, "box"));
  row("User", it.user === null ? aside("the machine's own") : code(it.user, "box"));
  const env = Object.entries(it.env);
  if (env.length) {
    const all = make("ul", "env");
    for (const [name, value] of env) {
      all.append(make("li", "", code(name, "box"), " = ", value === null ? aside("hidden") : code(value, "box")));
    }
    row("Environment", all);
  }
  if (it.stdin_bytes) {
    const size = `${it.stdin_bytes.toLocaleString("en")} bytes`;
    if (it.stdin === null) row("Input", aside(`${size}, ${status === "pending" ? "hidden" : "forgotten"}`));
    else {
      const lines = it.stdin.split("\n").length - (it.stdin.endsWith("\n") ? 1 : 0);
      row("Input", aside(`${size}, ${lines.toLocaleString("en")} ${lines === 1 ? "line" : "lines"}, all of it:`), make("pre", "stdin", inert(it.stdin)));
    }
  }
  if (it.stdin_stream) row("Input", make("strong", "", "more may be written once it runs"));
  if (list.querySelector(".far")) row("Underlined", aside("is not ASCII: letters of other alphabets can look like its own"));
  if (it.timeout_ms !== null) row("Runs at most", `${it.timeout_ms / 1000} s`);
  return list;
}

// --- what was decided ------------------------------------------------------------------------

function retire(card) {
  const { approval } = card;
  const summary = make("summary", "", make("span", `chip ${approval.status}`, approval.status), " ");
  const argv = make("span", "argv brief");
  for (const word of approval.asked.command) argv.append(code(word), " ");
  summary.append(argv);
  const past = make("details", "card past", summary, make("p", "outcome", ...outcome(approval)));
  past.append(make("p", "asked-by", "Machine ", named(approval.machine_id)), asked(approval));
  const focused = card.element.contains(document.activeElement);
  drop(card);
  $("past").prepend(past);
  while ($("past").childElementCount > PAST) $("past").lastElementChild.remove();
  $("decided").hidden = false;
  if (focused) $("waiting").focus({ preventScroll: true });
  setTimeout(() => {
    past.remove();
    $("decided").hidden = !$("past").childElementCount;
  }, PAST_MS);
}

// --- here ------------------------------------------------------------------------------------

$("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = $("key").value.trim();
  if (/^[\x21-\x7e]+$/.test(key)) enter(native(key));
  else told($("problem"), new Error("A key is letters, digits and underscores, without spaces."));
});
$("forget").addEventListener("click", () => leave());
setInterval(() => [...cards.values()].forEach((card) => card.tick()), 1000);
$("plain").hidden = isSecureContext;
const kept = sessionStorage.getItem(KEPT);
if (kept) enter(kept);
else leave();
