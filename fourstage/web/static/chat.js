import { call, headers, visible } from "./api.js";
import { made, Tokens } from "./chat_tokens.js";

const $ = (id) => document.getElementById(id);
const CHOICES = [["left", "Left is better"], ["right", "Right is better"], ["both_good", "Both good"], ["both_bad", "Both bad"]];

let models = [];
let output = "";
let rounds = []; // a question, its answers, and which of them the conversation goes on with
let running = null; // what stops the answers that are under way

const stored = (name) => { try { return localStorage.getItem(name); } catch { return null; } };
const store = (name, value) => { try { localStorage.setItem(name, value); } catch { /* a private window */ } };
const tell = (text) => { $("live").textContent = text; };

function say(text) {
  $("message").textContent = text ?? "";
  $("message").hidden = !text;
}

/** Fits what is shown to the models that are chosen. */
function showModels() {
  const two = $("two").checked;
  $("second-label").hidden = !two;
  $("first-label").textContent = two ? "Left" : "Model";
  const chosen = [$("first").value, ...(two ? [$("second").value] : [])];
  const continuing = models.filter((model) => chosen.includes(model.name) && model.continues).map((model) => model.name);
  const names = [...new Set(continuing)].map(visible).join(" and ");
  $("continues").hidden = !continuing.length;
  $("continues").textContent = `${names}: a base model. It was never taught to answer: it reads the conversation as `
    + "plain text and goes on with it, perhaps with more questions.";
}

function fill(select, place) {
  const option = ({ name, stage }) => new Option(visible(stage && !name.endsWith(stage) ? `${name} (${stage})` : name), name);
  select.replaceChildren(...models.map(option));
  select.selectedIndex = Math.min(place, models.length - 1);
}

/** The settings as they stand; an empty seed is another one each time. */
function settings() {
  const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));
  const seed = number("seed") ?? Math.floor(Math.random() * 2 ** 31);
  const sampling = { temperature: number("temperature"), max_new_tokens: number("max_new_tokens") };
  return { ...sampling, seed, system: $("system").value };
}

/** The conversation so far, as it is handed to whichever model is asked next. */
function turns() {
  return rounds.flatMap(({ question, answers, kept }) => {
    const { text, continues } = answers[kept];
    return [{ role: "user", content: question }, { role: "assistant", content: text, continues }];
  });
}

function answerBox(name) {
  const card = made("article", "card answer");
  const title = made("h2", "");
  title.append(made("bdi", "", visible(name)));
  const state = made("p", "soft", "waits for the model …");
  const text = made("div", "said tokens");
  text.dir = "auto";
  text.tabIndex = 0;
  text.setAttribute("role", "group");
  text.setAttribute("aria-label", `Answer of ${visible(name)}; the arrow keys go from token to token`);
  card.append(title, text, state);
  return { card, state, text };
}

const ENDS = {
  "it ended": (n) => `It ended after ${n} tokens.`,
  max_new_tokens: (n) => `Cut off after ${n} tokens, the most that were asked for.`,
  "its context is full": (n) => `Cut off after ${n} tokens: its context is full.`,
};

/** Streams one answer into its box; what came of it. */
async function streamed(name, body, signal, box) {
  const tokens = new Tokens(box.text);
  const answer = { name, text: "", continues: false, whole: false };
  const take = (row) => {
    if (row.kind === "error") throw new Error(row.error);
    if (row.kind === "start") started(name, row, box, answer);
    if (row.kind === "token") {
      answer.text += row.text;
      const follows = document.documentElement.scrollHeight - innerHeight - scrollY < 80;
      tokens.add(row);
      if (follows) scrollTo(0, document.documentElement.scrollHeight);
    }
    if (row.kind === "end") {
      answer.whole = true;
      answer.text += row.rest;
      tokens.close(row.rest);
      box.state.textContent = `${ENDS[row.why](row.tokens)} ${box.left}`;
    }
  };
  try {
    for await (const row of lines(body, signal)) take(row);
    if (!answer.whole) throw new Error("the server broke off");
  } catch (error) {
    box.state.textContent = signal.aborted ? "Stopped." : `Failed: ${visible(error.message)}`;
    answer.failed = !signal.aborted;
  }
  tokens.close();
  if (!answer.text && !answer.failed) box.text.append(made("span", "nothing", "(nothing)"));
  if (tokens.all.length) box.card.append(tableOf(tokens));
  return answer;
}

function started(name, row, box, answer) {
  box.state.textContent = `reads, then answers … ${visible(row.what)}`;
  answer.continues = !row.chats;
  const what = row.chats ? "messages" : "tokens";
  box.left = row.left_out ? `Its context is full: it did not see the first ${row.left_out} ${what}.` : "";
  const model = models.find((one) => one.name === name);
  model.continues = !row.chats;
  showModels();
}

/** The rows of an answer, as the server writes them. */
async function* lines(body, signal) {
  const response = await fetch("/api/say", { method: "POST", headers: headers(), body: JSON.stringify(body), signal });
  if (!response.ok) throw new Error((await response.json()).error);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const whole = (rest + value).split("\n");
    rest = whole.pop();
    for (const line of whole) yield JSON.parse(line);
  }
}

function tableOf(tokens) {
  const details = made("details", "");
  details.append(made("summary", "soft", "Probabilities as a table"));
  details.addEventListener("toggle", () => {
    if (!details.open || details.children.length > 1) return;
    const box = details.appendChild(made("div", "table"));
    box.tabIndex = 0; // it can be wider than the page
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", "Probabilities");
    box.append(tokens.table());
  });
  return details;
}

/** Puts a question to the chosen models. */
async function ask(question) {
  const before = turns();
  const asked = [...before, { role: "user", content: question }];
  const chosen = [$("first").value, ...($("two").checked ? [$("second").value] : [])];
  const set = settings();
  const section = made("section", "turn");
  const title = made("h2", "", "You");
  const said = made("div", "said question", visible(question));
  said.dir = "auto";
  const row = made("div", `answers${chosen.length > 1 ? " two" : ""}`);
  const boxes = chosen.map(answerBox);
  row.append(...boxes.map((box) => box.card));
  section.append(title, said, row);
  $("talk").append(section);
  section.scrollIntoView({ block: "end" });
  tell(`${chosen.map(visible).join(" and ")}: the answer is coming.`);
  const mine = begin();
  const answers = await Promise.all(chosen.map((name, i) => {
    const seed = i && name === chosen[0] ? set.seed + 1 : set.seed; // the same seed would give the same answer
    return streamed(name, { ...set, seed, model: name, turns: asked }, mine.signal, boxes[i]);
  }));
  if (running !== mine) return; // started over meanwhile
  end();
  conclude({ question, answers, kept: Math.max(0, answers.findIndex((one) => one.text)) }, { asked, set, section, boxes });
}

function begin() {
  running = new AbortController();
  const had = document.activeElement === $("send");
  $("send").hidden = true;
  $("stop").hidden = false;
  if (had) $("stop").focus();
  say(null);
  return running;
}

function end() {
  running = null;
  const had = document.activeElement === $("stop");
  $("send").hidden = false;
  $("stop").hidden = true;
  if (had) $("text").focus();
}

/** Adds a round to the conversation, unless nothing was said, and asks which answer was better. */
function conclude(round, shown) {
  tell(round.answers.map((one) => `${visible(one.name)}: ${one.failed ? "failed" : visible(one.text) || "nothing"}`).join(". "));
  if (!round.answers.some((one) => one.text)) {
    if (!$("text").value) $("text").value = round.question;
    say("No answer came; your text is in the field again.");
    return;
  }
  rounds.push(round);
  $("hint").hidden = false;
  if (round.answers.length > 1 && round.answers.every((one) => one.whole)) shown.section.append(voteOn(round, shown));
}

/** The buttons that write to the file which of two answers was better. */
function voteOn(round, { asked, set, boxes }) {
  const box = made("div", "vote");
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", "Which answer is better?");
  const told = made("p", "soft", `Which is better? It goes to ${visible(output)}. The conversation goes on with the better one, else the left.`);
  const since = performance.now();
  let pair = null;
  const undo = made("button", "", "Undo");
  const buttons = CHOICES.map(([choice, words]) => {
    const button = made("button", "", words);
    button.addEventListener("click", () => act(async () => {
      const [left, right] = round.answers;
      const seconds = (performance.now() - since) / 1000;
      const vote = { choice, turns: asked, left: left.text, right: right.text, models: [left.name, right.name], seconds };
      return show(await call("vote", { ...set, ...vote, person: $("person").value.trim() || "me" }), choice);
    }));
    return button;
  });
  const act = async (work) => {
    const [all, pressed] = [[...buttons, undo], document.activeElement];
    const before = all.map((button) => button.disabled);
    for (const button of all) button.disabled = true;
    try {
      await work();
      say(null);
    } catch (error) {
      all.forEach((button, i) => { button.disabled = before[i]; });
      pressed.focus();
      say(`Not saved. ${error.message}`);
    }
  };
  const show = (answer, choice) => {
    pair = choice && answer.pair;
    buttons.forEach((button, i) => {
      button.disabled = Boolean(choice);
      button.setAttribute("aria-pressed", String(CHOICES[i][0] === choice));
    });
    undo.hidden = !choice;
    undo.disabled = false;
    keep(round, boxes, choice);
    told.textContent = `${choice ? "Saved" : "Undone"} in ${visible(answer.path)}: ${answer.count} of your votes stand there.`;
    (choice ? undo : buttons[0]).focus();
    tell(told.textContent);
  };
  undo.hidden = true;
  undo.addEventListener("click", () => act(async () => show(await call("undo", { pair, person: $("person").value.trim() || "me" }), null)));
  for (const button of [...buttons, undo]) button.type = "button";
  box.append(told, ...buttons, undo);
  return box;
}

/** The conversation goes on with the better answer, if there is text in it. */
function keep(round, boxes, choice) {
  const better = choice === "right" ? 1 : 0;
  round.kept = round.answers[better].text ? better : 1 - better;
  boxes.forEach(({ card }, i) => card.classList.toggle("kept", Boolean(choice) && ["left", "right"][i] === choice));
}

function reset() {
  running?.abort();
  end();
  rounds = [];
  $("talk").replaceChildren();
  $("hint").hidden = true;
  say(null);
  tell("The conversation is forgotten.");
  $("text").focus();
}

async function start() {
  try {
    const given = await call("start", {});
    ({ models, output } = given);
    fill($("first"), models.length > 1 && models[0].continues ? 1 : 0);
    fill($("second"), models.length - 1);
    for (const id of ["temperature", "max_new_tokens", "seed", "system"]) $(id).value = given[id] ?? "";
    $("person").value = stored("person") ?? "me";
    showModels();
  } catch (error) {
    say(error.message);
  }
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value;
  if (running || !text.trim() || !models.length) return;
  $("text").value = "";
  ask(text);
});
$("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("ask").requestSubmit();
});
$("stop").addEventListener("click", () => running?.abort());
$("reset").addEventListener("click", reset);
$("shades").addEventListener("change", () => $("talk").classList.toggle("shaded", $("shades").checked));
$("person").addEventListener("change", () => store("person", $("person").value.trim() || "me"));
for (const id of ["first", "second", "two"]) $(id).addEventListener("change", showModels);
$("talk").classList.toggle("shaded", $("shades").checked);
start();
