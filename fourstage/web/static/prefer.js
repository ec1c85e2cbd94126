import { call, visible } from "./api.js";

const $ = (id) => document.getElementById(id);
const PAUSE = 350; // ms after a pair appears in which no choice counts: a second tap was meant for the last one
const RETRY = 1500; // ms

let pair = null; // the pair on the page
let shownAt = 0; // when it appeared
let away = 0; // ms in which the page was hidden since then
let hiddenSince = null;
let last = null; // the pair of the choice that Undo takes back
let busy = false;
let asked = 0; // requests for the state; only the newest answer is shown

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
  const sent = { person: person(), ...body };
  for (;;) {
    try {
      const answer = await call(path, sent);
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

function showPrompt(turns, own) {
  const parts = turns.flatMap((turn) => {
    const title = document.createElement("h2");
    title.textContent = { user: own ? "Your prompt" : "Prompt", system: "System", assistant: "Answer before" }[turn.role] ?? visible(turn.role);
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
  if (state.problem || state.notice) say(state.problem ?? state.notice);
  const isNew = state.pair?.id !== pair?.id;
  [pair, last] = [state.pair, state.last];
  $("undo").disabled = !last;
  $("pair").hidden = !pair;
  $("names").hidden = !pair;
  if (pair && isNew) showPair(state.own);
  showNames(state.names);
  if (state.waiting) setTimeout(look, 300);
}

function showPair(own) {
  [shownAt, away] = [performance.now(), 0];
  hiddenSince = document.hidden ? shownAt : null;
  showPrompt(pair.prompt, own);
  for (const side of ["left", "right"]) {
    put($(side), pair[side]);
    $(side).scrollTop = 0;
    $(side).parentElement.classList.remove("picked");
  }
  const draft = JSON.parse(stored(sessionStorage, draftOf(pair)) ?? "{}");
  $("better").value = draft.better ?? "";
  $("comment").value = draft.comment ?? "";
  $("more").open = Boolean(draft.better || draft.comment);
  if (!isTyping(document.activeElement)) $("prompt").focus({ preventScroll: true });
  if ($("prompt").getBoundingClientRect().top < 0) $("prompt").scrollIntoView();
}

function showNames(names) {
  for (const side of ["left", "right"]) $(`${side}-name`).textContent = names ? visible(names[side]) : "";
  $("names").setAttribute("aria-expanded", String(Boolean(names)));
}

const isTyping = (element) => ["INPUT", "TEXTAREA", "SELECT"].includes(element?.tagName);
const draftOf = ({ id }) => `draft ${person()} ${id}`; // kept after the choice too: Undo brings it back

function keepDraft() {
  if (pair) store(sessionStorage, draftOf(pair), JSON.stringify({ better: $("better").value, comment: $("comment").value }));
}

/** Runs one request at a time, and shows the state that comes back or the one that is. */
async function act(work) {
  if (busy) return;
  lock(true);
  try {
    show(await work());
  } catch (error) {
    for (const side of ["left", "right"]) $(side).parentElement.classList.remove("picked"); // it was not saved
    $("live").textContent = "";
    try { show(await send("state", {})); } catch { /* the first error says it */ }
    say(error.message);
  } finally {
    lock(false);
  }
}

/** While a request is under way nothing can be pressed or typed that its answer would take away. */
function lock(on) {
  const focused = document.activeElement;
  busy = on;
  asked += 1;
  document.body.dataset.busy = on;
  for (const part of document.querySelectorAll("button, #person")) part.disabled = on;
  for (const id of ["better", "comment", "own"]) $(id).readOnly = on;
  if (on) lock.focused = focused;
  else {
    $("undo").disabled = !last;
    if (document.activeElement === document.body) lock.focused?.focus({ preventScroll: true });
  }
}

/** Shows how things stand, unless something else was asked for in the meantime. */
async function look() {
  if (busy) return;
  const mine = ++asked;
  try {
    const state = await send("state", {});
    if (mine === asked) show(state);
  } catch (error) {
    say(error.message);
  }
}

function choose(choice) {
  if (!pair || busy || performance.now() - shownAt < PAUSE) return;
  const seconds = (performance.now() - shownAt - away) / 1000;
  const chosen = { pair: pair.id, choice, better: $("better").value, comment: $("comment").value, seconds };
  for (const side of ["left", "right"]) $(side).parentElement.classList.toggle("picked", side === choice);
  act(async () => {
    const state = await send("choose", chosen);
    $("live").textContent = `Saved: ${choice.replace("_", " ")}. ${state.pair ? "The next pair is here." : ""}`;
    return state;
  });
}

function undo() {
  if (!last) return;
  act(async () => {
    const state = await send("undo", { pair: last });
    $("live").textContent = "Your last choice is undone; its pair is here again.";
    return state;
  });
}

function askNames() {
  if (pair) act(() => send("names", { pair: pair.id }));
}

async function enough() {
  if (busy) return;
  lock(true);
  try {
    const { rows } = await call("enough", { person: person() });
    const end = document.createElement("p");
    end.textContent = `The server has ended, with ${rows} pairs to learn from; the terminal says how to go on. You can close this page.`;
    document.querySelector("main").replaceChildren(end);
    for (const part of document.querySelectorAll("section.card, #ask")) part.remove();
    [pair, last] = [null, null];
    end.tabIndex = -1;
    end.focus();
  } catch (error) {
    lock(false);
    say(error.message);
  }
}

// A second click right behind the first was meant for what was there before.
const onSingleClick = (button, work) => button.addEventListener("click", (event) => { if (event.detail < 2) work(); });
for (const button of document.querySelectorAll("[data-choice]")) onSingleClick(button, () => choose(button.dataset.choice));
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", () => { $("better").value = pair[button.dataset.copy].trim(); keepDraft(); $("better").focus(); });
}
onSingleClick($("undo"), undo);
onSingleClick($("enough"), enough);
$("names").addEventListener("click", askNames);
$("again").addEventListener("click", () => act(() => send("state", {})));
for (const id of ["better", "comment"]) $(id).addEventListener("input", keepDraft);
$("pair").addEventListener("submit", (event) => event.preventDefault());
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("own").value;
  act(async () => {
    const state = await send("ask", { text });
    $("own").value = "";
    $("live").textContent = "Asked: your pair comes next.";
    return state;
  });
});
$("person").addEventListener("change", () => {
  store(localStorage, "person", person());
  const address = new URL(location); // a name in it was for the start
  address.searchParams.delete("person");
  history.replaceState(null, "", address);
  pair = null;
  act(() => send("state", {}));
});

const KEYS = { 1: "left", 2: "right", 3: "both_good", 4: "both_bad", s: "skip" };
document.addEventListener("keydown", (event) => {
  if (isTyping(event.target) || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
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
