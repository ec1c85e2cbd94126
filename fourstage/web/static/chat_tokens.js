// The tokens of an answer: shown as they come, with what else was likely when one of them is pointed at.

import { visible } from "./api.js";

const tip = document.getElementById("tip");
const live = document.getElementById("live");
let pointed = null; // the token that the tip belongs to
const LEVELS = [0.9, 0.5, 0.2, 0.05]; // a token below the nth has the shade n

/** An element with a class and text. */
export function made(tag, className, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

const percent = (p) => (p > 0.9995 ? "100 %" : p < 0.0005 ? "< 0.1 %" : `${(100 * p).toFixed(1)} %`);

/** How a token is spelt, with its spaces and line breaks to be seen. */
const spelt = (token) => visible(token).replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥") || "(nothing)";

const named = (part) => (part.ends ? `the end ${spelt(part.token)}` : spelt(part.token));

/** In words: the token, its probability, and the likeliest ones. */
function inWords(parts) {
  return parts.map((part) => {
    const others = part.likeliest.map(([token, p]) => `${spelt(token)} ${percent(p)}`).join(", ");
    return `${named(part)}: ${percent(part.probability)}. Likeliest: ${others}.`;
  }).join(" ");
}

function tipOf(part) {
  const head = made("p", "");
  head.append(made("code", "", named(part)), ` had ${percent(part.probability)}`);
  const list = made("ol", "");
  for (const [token, p] of part.likeliest) {
    const row = made("li", "");
    row.style.setProperty("--p", p);
    row.append(made("code", "", spelt(token)), made("span", "", percent(p)));
    list.append(row);
  }
  return [head, list];
}

/** The tokens of one answer in the element `box`. */
export class Tokens {
  constructor(box) {
    this.box = box;
    this.all = []; // of each span: its element, and the tokens that it was made of
    this.parts = []; // tokens that are no whole character yet
    this.place = 0;
    box.addEventListener("pointerover", (event) => event.pointerType === "mouse" && this.point(event.target));
    box.addEventListener("pointerleave", () => this.leave());
    box.addEventListener("click", (event) => this.point(event.target));
    box.addEventListener("keydown", (event) => this.key(event));
    box.addEventListener("focus", () => box.matches(":focus-visible") && this.show(this.place, true));
    box.addEventListener("blur", () => this.leave());
  }

  /** Adds a token; parts of a character wait for the rest of it. */
  add(token) {
    this.parts.push(token);
    if (token.text || token.ends) this.close(token.text);
  }

  /** Shows the text of the tokens that wait. */
  close(text = "") {
    if (!this.parts.length) return;
    const span = made("span", text || !this.parts.at(-1).ends ? "" : "end", visible(text));
    const least = Math.min(...this.parts.map((part) => part.probability));
    span.dataset.level = LEVELS.filter((level) => least < level).length;
    this.all.push({ span, parts: this.parts });
    this.parts = [];
    this.box.append(span);
  }

  point(target) {
    const place = this.all.findIndex(({ span }) => span === target);
    if (place >= 0) this.show(place, false);
  }

  key(event) {
    const to = { ArrowRight: this.place + 1, ArrowLeft: this.place - 1, Home: 0, End: this.all.length - 1 }[event.key];
    if (event.key === "Escape") this.leave();
    if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.show(Math.max(0, Math.min(to, this.all.length - 1)), true);
  }

  show(place, aloud) {
    if (!this.all[place]) return;
    this.leave();
    this.place = place;
    const { span, parts } = this.all[place];
    span.classList.add("current");
    if (aloud) live.textContent = inWords(parts);
    tip.replaceChildren(...parts.flatMap(tipOf));
    tip.hidden = false;
    if (aloud) span.scrollIntoView({ block: "nearest" });
    pointed = span;
    moveTip();
  }

  leave() {
    this.all[this.place]?.span.classList.remove("current");
    tip.hidden = true;
  }

  /** All of it as a table. */
  table() {
    const table = made("table", "");
    const row = (tag, texts) => {
      const line = table.appendChild(made("tr", ""));
      for (const text of texts) line.append(typeof text === "string" ? made(tag, "", text) : cell(text));
      return line;
    };
    for (const head of row("th", ["Token", "Probability", "Likeliest"]).children) head.scope = "col";
    for (const { parts } of this.all) {
      for (const part of parts) {
        const others = part.likeliest.map(([token, p]) => `${spelt(token)} ${percent(p)}`);
        row("td", [[named(part)], percent(part.probability), others]);
      }
    }
    return table;
  }
}

function cell(codes) {
  const box = made("td", "");
  codes.forEach((text, i) => box.append(i ? ", " : "", made("code", "", text)));
  return box;
}

/** Puts the tip below the token on the page, or above it where there is no room. */
function moveTip() {
  const { left, top, bottom } = pointed.getClientRects()[0] ?? pointed.getBoundingClientRect();
  const width = document.documentElement.clientWidth;
  const below = document.querySelector("footer").getBoundingClientRect().top;
  const fits = bottom + 6 + tip.offsetHeight < below;
  tip.style.left = `${Math.max(8, Math.min(left, width - tip.offsetWidth - 8))}px`;
  tip.style.top = `${fits ? bottom + 6 : Math.max(8, top - 6 - tip.offsetHeight)}px`;
}

addEventListener("scroll", () => { if (!tip.hidden) moveTip(); }, { passive: true });
