// One message of the assistant: thoughts, text or tokens, tool calls, and what went wrong.
import { h, icon, iconButton, showChildren } from "./dom.js";
import { number, seconds, t } from "./i18n.js";
import { renderMarkdown } from "./markdown.js";
import { TokenView } from "./token_view.js";
import { toolCard } from "./tool_card.js";

export class AnswerView {
  // context: results (by call id), confirmations (by call), tooltip, showsTokens(message), openThoughts (a set of ids),
  //   retry(message), retryShorter(message).
  constructor(message, context) {
    Object.assign(this, { message, context, thinkingFrom: null, thinkingTo: null, shownThoughts: "" });
    this.thoughts = h("details", { class: "thoughts", hidden: true });
    this.thoughts.open = context.openThoughts.has(message.id);
    this.thoughts.addEventListener("toggle", () => this.toggled());
    this.thoughtsLabel = h("span");
    this.thoughtsText = h("div", { class: "prose" });
    this.thoughts.append(h("summary", {}, icon("bulb"), this.thoughtsLabel), this.thoughtsText);
    this.body = h("div", { class: "prose" });
    this.calls = h("div", { class: "calls" });
    this.notices = h("div");
    this.element = h("div", { class: "part" }, this.thoughts, this.body, this.calls, this.notices);
    this.update();
  }

  get isRunning() {
    return this.message.status === "running";
  }

  toggled() {
    const { openThoughts } = this.context;
    if (this.thoughts.open) openThoughts.add(this.message.id);
    else openThoughts.delete(this.message.id);
    this.showThoughts();
  }

  // Shows what the message has now.
  update() {
    const { message } = this;
    this.showThoughts();
    if (this.context.showsTokens(message)) {
      if (!this.tokens) {
        this.tokens = new TokenView(this.context.tooltip);
        this.body.replaceWith(this.tokens.element);
      }
      this.tokens.update(message.tokens);
    } else if (this.shownText !== message.content) {
      this.shownText = message.content;
      showChildren(this.body, proseOf(message.content));
    }
    const isEmpty = !message.content && !message.reasoning_content && !message.tool_calls && !message.tokens;
    this.element.classList.toggle("waiting", this.isRunning && isEmpty);
    this.element.classList.toggle("writing", this.isRunning && !isEmpty);
    this.showCalls();
    this.notices.replaceChildren(...noticesOf(message, this.context));
  }

  showThoughts() {
    const { message, thoughts } = this;
    const text = message.reasoning_content ?? "";
    thoughts.hidden = !text.trim();
    if (thoughts.hidden) return;
    const now = performance.now() / 1000;
    this.thinkingFrom ??= now;
    const isThinking = this.isRunning && !message.content && !message.tool_calls;
    if (!isThinking) this.thinkingTo ??= now;
    const spent = message.stats?.thinking ?? (this.thinkingTo ?? now) - this.thinkingFrom;
    const isKnown = message.stats?.thinking !== undefined || this.isRunning;
    const label = isThinking
      ? t("thinkingNow", { seconds: seconds(spent) })
      : t("thought", { seconds: seconds(spent) });
    this.thoughtsLabel.textContent = isKnown ? label : t("thoughts");
    if (thoughts.open && this.shownThoughts !== text) {
      this.shownThoughts = text;
      showChildren(this.thoughtsText, renderMarkdown(text));
    }
  }

  showCalls() {
    const { message, context } = this;
    const calls = message.tool_calls ?? [];
    const results = calls.map((call) => context.results(call.id));
    const states = calls.map((call, i) => [
      call.arguments,
      results[i],
      message.status,
      context.confirmations.has(call),
    ]);
    const state = JSON.stringify(states);
    if (state === this.shownCalls) return;
    this.shownCalls = state;
    const cards = calls.map((call, i) => {
      const confirm = context.confirmations.get(call) ?? null;
      return toolCard({ call, result: results[i], isRunning: context.isRunning(), confirm });
    });
    this.calls.replaceChildren(...cards);
  }
}

// Markdown with a copy button on each block of code.
function proseOf(text) {
  const fragment = renderMarkdown(text);
  for (const pre of fragment.querySelectorAll("pre")) {
    pre.tabIndex = 0; // it may scroll
    const block = h("div", { class: "code-block" });
    pre.replaceWith(block);
    block.append(pre, iconButton("copy", t("copyCode"), { class: "small", "data-action": "copy-code" }));
  }
  for (const table of fragment.querySelectorAll("table")) table.tabIndex = 0;
  return fragment;
}

const ERRORS = {
  gone: "errorGone",
  cut: "errorCut",
  queue_full: "errorQueue",
  invalid_api_key: "errorKey",
  shutting_down: "errorShuttingDown",
  timeout: "errorTimeout",
  model_not_found: "errorModel",
  tool_rounds: "errorToolRounds",
  bad_answer: "errorBadAnswer",
};

function noticesOf(message, context) {
  const notices = [];
  const say = (text, kind = "") => notices.push(h("p", { class: `notice ${kind}`.trim() }, text));
  if (message.left_out) say(t(message.left_out === 1 ? "leftOutOne" : "leftOut", { n: number(message.left_out) }));
  if (message.status === "length") say(t("cutOff", { n: number(message.stats?.tokens ?? 0) }));
  if (message.status === "stopped") say(t("stopped"));
  if (!message.error) return notices;
  const { code } = message.error;
  const isFull = code === "context_length_exceeded";
  const key = isFull ? "errorContext" : ERRORS[code];
  const text = key ? t(key) : t("errorOther", { message: message.error.message });
  const buttons = h("span", { class: "notice-buttons at-rest" });
  if (message.status === "failed") {
    const button = (label, onclick) =>
      buttons.append(h("button", { type: "button", class: "button small", onclick }, label));
    if (isFull) button(t("leaveOutOldest"), () => context.retryShorter(message));
    button(t("retry"), () => context.retry(message));
  }
  const detail = isFull || code === "bad_answer" ? h("span", { class: "detail" }, message.error.message) : null;
  const kind = message.status === "failed" ? "notice failed" : "notice";
  notices.push(
    h("div", { class: kind, role: "group", "aria-label": t("problem") }, h("span", {}, text, detail), buttons),
  );
  return notices;
}
