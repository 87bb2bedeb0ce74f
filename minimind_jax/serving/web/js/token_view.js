// An answer token by token: coloured by probability; what else was likely on hover and on keyboard focus.
import { h } from "./dom.js";
import { number, t } from "./i18n.js";

const LEVELS = [0.9, 0.6, 0.3, 0.1]; // at least this likely: level 0, 1, 2, 3; below 4

export class TokenView {
  constructor(tooltip) {
    this.tooltip = tooltip;
    this.entries = []; // of each shown piece: its tokens
    this.n = 0; // tokens seen
    this.open = null; // the beginning of a character whose bytes are spread over several tokens
    this.element = h("div", { class: "tokens", role: "listbox", "aria-label": t("tokensOfAnswer") });
    this.element.addEventListener("pointerover", (event) => this.point(event.target, false));
    this.element.addEventListener("pointerleave", () => this.tooltip.hide());
    this.element.addEventListener("focusin", (event) => this.point(event.target, true));
    this.element.addEventListener("focusout", () => this.tooltip.hide());
    this.element.addEventListener("keydown", (event) => this.move(event));
  }

  // Adds the tokens that are new.
  update(tokens) {
    for (; this.n < tokens.length; this.n++) this.add(tokens[this.n]);
  }

  add(token) {
    const group = this.open ? [...this.open.group, token] : [token];
    const [text, isWhole] = textOf(group);
    if (this.open) {
      this.open.element.remove();
      this.entries.pop();
    }
    const probability = probabilityOf(group);
    const level = LEVELS.findIndex((least) => probability >= least);
    const element = h("span", { class: `token p${level < 0 ? LEVELS.length : level}`, role: "option" }, text);
    if (!text.trim()) element.setAttribute("aria-label", shown(text)); // blanks alone are no name
    element.tabIndex = this.entries.length === 0 ? 0 : -1;
    element.dataset.number = this.entries.length;
    this.entries.push(group);
    this.element.append(element);
    this.open = isWhole ? null : { element, group };
  }

  point(target, isFocus) {
    if (target.dataset.number === undefined) return;
    const group = this.entries[target.dataset.number];
    if (isFocus) {
      const others = group.at(-1)[3].map(([text, logprob]) => `${shown(text)} ${percent(Math.exp(logprob))}`);
      const [text] = textOf(group);
      target.setAttribute("aria-label", `${shown(text)}, ${percent(probabilityOf(group))}. ${others.join(", ")}`);
    }
    this.tooltip.show(target, contentOf(group));
  }

  move(event) {
    const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
    const step = steps[event.key];
    const from = Number(document.activeElement.dataset.number);
    if (step === undefined || Number.isNaN(from)) return;
    event.preventDefault();
    const to = Math.min(Math.max(from + step, 0), this.entries.length - 1);
    this.element.children[from].tabIndex = -1;
    this.element.children[to].tabIndex = 0;
    this.element.children[to].focus();
  }
}

// One for the page.
export class Tooltip {
  constructor() {
    this.element = h("div", { class: "tooltip", role: "tooltip", id: "tooltip", hidden: true });
    document.body.append(this.element);
    document.addEventListener("scroll", () => !this.element.hidden && this.place(), {
      capture: true,
      passive: true,
    });
  }

  show(target, content) {
    this.target = target;
    this.element.replaceChildren(content);
    this.element.hidden = false;
    this.place();
  }

  place() {
    const at = this.target.getBoundingClientRect();
    const own = this.element.getBoundingClientRect();
    const left = Math.min(Math.max(8, at.left), innerWidth - own.width - 8);
    const below = at.bottom + 6;
    const top = below + own.height > innerHeight ? at.top - own.height - 6 : below;
    this.element.style.left = `${left}px`;
    this.element.style.top = `${Math.max(4, top)}px`;
  }

  hide() {
    this.element.hidden = true;
  }
}

// The text of tokens that belong together, and whether they are whole characters.
function textOf(group) {
  if (group.some(([, , bytes]) => bytes === null)) return [group.map(([text]) => text).join(""), true];
  const bytes = Uint8Array.from(group.flatMap(([, , some]) => some));
  try {
    return [new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes), true];
  } catch {
    return [new TextDecoder().decode(bytes), group.length >= 4]; // no character has more than four bytes
  }
}

const probabilityOf = (group) => Math.exp(group.reduce((sum, [, logprob]) => sum + logprob, 0));

const percent = (p) => `${number(100 * p, p > 0 && p < 0.1 ? 2 : 1)} %`;

// Blanks made visible.
const shown = (text) => text.replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥");

function contentOf(group) {
  const [text] = textOf(group);
  const rows = group
    .at(-1)[3]
    .map(([other, logprob]) =>
      h(
        "tr",
        { class: other === group.at(-1)[0] ? "own" : null },
        h("td", {}, shown(other)),
        h("td", {}, percent(Math.exp(logprob))),
      ),
    );
  return h(
    "div",
    {},
    h("p", {}, h("b", {}, shown(text)), ` ${percent(probabilityOf(group))}`),
    rows.length > 0 && h("table", {}, h("tbody", {}, rows)),
  );
}
