import { call, visible } from "./api.js";

const $ = (id) => document.getElementById(id);
const PAUSE = 250; // ms after a pair appears in which no choice counts: a double click or a held key was meant for the last
const RETRY = 1500; // ms

let pair = null; // the pair on the page
let shownAt = 0; // when it appeared
let away = 0; // ms in which the page was hidden since then
let hiddenSince = null;
let blind = true;
let busy = false;

const stored = (storage, name) => { try { return storage.getItem(name); } catch { return null; } };
const store = (storage, name, value) => { try { storage.setItem(name, value); } catch { /* a private window */ } };
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const person = () => $("person").value.trim() || "me";

function say(text) {
  $("message").textContent = text ?? "";
  $("message").hidden = !text;
}

/** Sends a request until the server answers it: every one may be sent twice without harm. */
async function send(path, body) {
  for (;;) {
    try {
      const answer = await call(path, { person: person(), ...body });
      say(null);
      return answer;
    } catch (error) {
      if (!error.offline) throw error;
      say(`${error.message} What you chose is kept on this page and sent again; start the server again if it has ended.`);
      await pause(RETRY);
    }
  }
}

function put(element, text) {
  element.textContent = text.trim() ? visible(text) : "(nothing)";
  element.classList.toggle("nothing", !text.trim());
}

function showPrompt(turns) {
  const parts = turns.flatMap((turn) => {
    const title = document.createElement("h2");
    title.textContent = { user: "Prompt", system: "System", assistant: "Answer before" }[turn.role] ?? visible(turn.role);
    const text = document.createElement("div");
    text.className = "said";
    text.dir = "auto";
    put(text, String(turn.content ?? ""));
    return [title, text];
  });
  $("prompt").replaceChildren(...parts);
}

function showProgress({ counts, pace, left, steady, agree, ready, people }) {
  const chosen = Object.values(counts).reduce((a, b) => a + b, 0);
  const ties = (counts.both_good ?? 0) + (counts.both_bad ?? 0);
  const share = (n, of) => (of ? `${n} of ${of}` : "none yet");
  const facts = [
    ["Your choices", String(chosen)],
    ["Ties, skipped", `${ties}, ${counts.skip ?? 0}`],
    ["Your pace", pace === null ? "–" : `${pace.toFixed(1)} s a pair`],
    ["Left, of left and right", left === null ? "–" : `${Math.round(100 * left)} %`],
    ["Repeated pairs chosen alike", share(...steady)],
    ["As others chose", share(...agree)],
    ["Pairs to learn from", people > 1 ? `${ready} by ${people} people` : String(ready)],
  ];
  $("progress").replaceChildren(...facts.map(([name, value]) => {
    const box = document.createElement("div");
    const [dt, dd] = ["dt", "dd"].map((tag) => box.appendChild(document.createElement(tag)));
    dt.textContent = name;
    dd.textContent = value;
    return box;
  }));
}

function show(state) {
  showProgress(state.progress);
  $("enough").textContent = state.trains_next ? "That is enough: train on my choices" : "That is enough";
  $("waiting").hidden = !state.waiting;
  $("again").hidden = !state.problem;
  if (state.problem) say(state.problem);
  const isNew = state.pair?.id !== pair?.id;
  pair = state.pair;
  $("pair").hidden = !pair;
  $("names").hidden = !pair;
  if (pair && isNew) showPair();
  if (state.waiting) refresh();
}

function showPair() {
  [shownAt, away, blind] = [performance.now(), 0, true];
  hiddenSince = document.hidden ? shownAt : null;
  showPrompt(pair.prompt);
  for (const side of ["left", "right"]) {
    put($(side), pair[side]);
    $(side).scrollTop = 0;
    $(`${side}-name`).textContent = "";
    $(side).parentElement.classList.remove("picked");
  }
  $("names").setAttribute("aria-expanded", "false");
  const draft = JSON.parse(stored(sessionStorage, `draft ${pair.id}`) ?? "{}");
  $("better").value = draft.better ?? "";
  $("comment").value = draft.comment ?? "";
  $("more").open = Boolean(draft.better || draft.comment);
  if (!["INPUT", "TEXTAREA"].includes(document.activeElement?.tagName)) $("prompt").focus({ preventScroll: true });
}

function keepDraft() {
  if (pair) store(sessionStorage, `draft ${pair.id}`, JSON.stringify({ better: $("better").value, comment: $("comment").value }));
}

/** Runs one request at a time, and shows the state that comes back or the one that is. */
async function act(work) {
  if (busy) return;
  busy = true;
  for (const button of document.querySelectorAll("button")) button.disabled = true;
  try {
    show(await work());
  } catch (error) {
    const words = error.message;
    try { show(await send("state", {})); } catch { /* the first error says it */ }
    say(words);
  } finally {
    busy = false;
    for (const button of document.querySelectorAll("button")) button.disabled = false;
  }
}

const refresh = () => setTimeout(() => act(() => send("state", {})), 300);

function choose(choice) {
  if (!pair || busy || performance.now() - shownAt < PAUSE) return;
  const seconds = (performance.now() - shownAt - away) / 1000;
  const chosen = { pair: pair.id, choice, better: $("better").value, comment: $("comment").value, seconds, blind };
  for (const side of ["left", "right"]) $(side).parentElement.classList.toggle("picked", side === choice);
  act(async () => {
    const state = await send("choose", chosen);
    try { sessionStorage.removeItem(`draft ${chosen.pair}`); } catch { /* a private window */ }
    $("live").textContent = `Saved: ${choice.replace("_", " ")}. ${state.pair ? "The next pair is here." : ""}`;
    return state;
  });
}

function undo() {
  act(async () => {
    const state = await send("undo", {});
    $("live").textContent = "Your last choice is undone; its pair is here again.";
    return state;
  });
}

async function showNames() {
  if (!pair) return;
  blind = false;
  try {
    const names = await send("names", { pair: pair.id });
    for (const side of ["left", "right"]) $(`${side}-name`).textContent = visible(names[side]);
    $("names").setAttribute("aria-expanded", "true");
  } catch (error) {
    say(error.message);
  }
}

async function enough() {
  try {
    const { rows } = await call("enough", { person: person() });
    const end = document.createElement("p");
    end.textContent = `The server has ended, with ${rows} pairs to learn from; the terminal says how to go on. You can close this page.`;
    document.querySelector("main").replaceChildren(end);
    for (const part of document.querySelectorAll("section.card, #ask")) part.remove();
    pair = null;
  } catch (error) {
    say(error.message);
  }
}

for (const button of document.querySelectorAll("[data-choice]")) button.addEventListener("click", () => choose(button.dataset.choice));
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", () => { $("better").value = pair[button.dataset.copy].trim(); keepDraft(); $("better").focus(); });
}
$("undo").addEventListener("click", undo);
$("names").addEventListener("click", showNames);
$("enough").addEventListener("click", enough);
$("again").addEventListener("click", refresh);
for (const id of ["better", "comment"]) $(id).addEventListener("input", keepDraft);
$("pair").addEventListener("submit", (event) => event.preventDefault());
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("own").value;
  act(async () => {
    await send("ask", { text });
    $("own").value = "";
    return send("state", {});
  });
});
$("person").addEventListener("change", () => {
  store(localStorage, "person", person());
  pair = null;
  act(() => send("state", {}));
});

const KEYS = { 1: "left", 2: "right", 3: "both_good", 4: "both_bad", s: "skip" };
document.addEventListener("keydown", (event) => {
  const typing = ["INPUT", "TEXTAREA", "SELECT"].includes(event.target.tagName);
  if (typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.toLowerCase();
  if (KEYS[key]) choose(KEYS[key]);
  else if (key === "u") undo();
  else return;
  event.preventDefault();
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden) hiddenSince = performance.now();
  else if (hiddenSince !== null) [away, hiddenSince] = [away + performance.now() - hiddenSince, null];
});
window.addEventListener("pageshow", (event) => { if (event.persisted) act(() => send("state", {})); });

$("person").value = new URLSearchParams(location.search).get("person") ?? stored(localStorage, "person") ?? "me";
act(() => send("state", {}));
