// The conversation on the page. Turns that have not changed keep their elements; while an answer grows only its own
// text is drawn, at most once a frame.
import { AnswerView } from "./answer_view.js";
import { h, icon, iconButton } from "./dom.js";
import { language, number, seconds, t } from "./i18n.js";
import { Tooltip } from "./token_view.js";
import { turns, versions } from "./tree.js";

const MIN_TIMED = 8; // tokens whose speed says something
const SHARE = 5; // drawing takes at most about one part in so many of the time

export class ChatView {
  // root: the element of the turns. session, settings, models(): as the page has them.
  constructor({ root, session, settings, severalModels, onChanged }) {
    Object.assign(this, { root, session, settings, severalModels, onChanged });
    this.shown = new Map(); // key of a turn -> {state, element}
    this.answers = new Map(); // id of a message -> AnswerView
    this.confirmations = new Map(); // call -> {run, skip}
    this.openThoughts = new Set();
    this.asText = new Map(); // id of a message -> whether it is shown as text, where the user has chosen
    this.editing = null; // id of the question that is edited
    this.growing = new Set();
    this.tooltip = new Tooltip();
    this.tick = null;
    root.addEventListener("click", (event) => this.clicked(event));
  }

  // Draws what has changed.
  update() {
    const { root, session } = this;
    const conversation = session.current;
    const next = new Map();
    const elements = [];
    for (const turn of turns(conversation)) {
      const key = turn.user?.id ?? "first";
      const state = this.stateOf(turn);
      const old = this.shown.get(key);
      const kept = old?.state === state ? old : { state, element: this.turnElement(turn) };
      next.set(key, kept);
      elements.push(kept.element);
    }
    this.shown = next;
    root.classList.toggle("busy", session.isRunning()); // hides what needs a conversation at rest
    elements.forEach((element, i) => {
      if (root.children[i] !== element) root.insertBefore(element, root.children[i] ?? null);
    });
    while (root.children.length > elements.length) root.lastChild.remove();
    this.forgetAnswers();
    this.onChanged();
  }

  // Everything anew: another language, other settings.
  redraw() {
    this.shown.clear();
    this.update();
  }

  // An answer has grown.
  grew(message) {
    this.growing.add(message);
    if (this.tick === null) this.tick = requestAnimationFrame(() => this.draw());
  }

  draw() {
    const start = performance.now();
    for (const message of this.growing) this.answers.get(message.id)?.update();
    this.growing.clear();
    this.onChanged();
    const pause = (performance.now() - start) * SHARE;
    const again = () => {
      this.tick = null;
      if (this.growing.size) this.tick = requestAnimationFrame(() => this.draw());
    };
    if (pause > 16) this.tick = setTimeout(again, pause);
    else again();
  }

  // Asks whether a call may run; the arguments to run it with, or null.
  confirm(message, call, signal) {
    return new Promise((resolve, reject) => {
      const settle = (finish) => {
        this.confirmations.delete(call);
        signal.removeEventListener("abort", stop);
        this.answers.get(message.id)?.update();
        finish();
      };
      const stop = () => settle(() => reject(new DOMException("stopped", "AbortError")));
      if (signal.aborted) return stop();
      signal.addEventListener("abort", stop);
      const decide = (value) => settle(() => resolve(value));
      this.confirmations.set(call, { run: decide, skip: () => decide(null) });
      this.answers.get(message.id)?.update();
      this.onChanged();
    });
  }

  edit(id) {
    this.editing = id;
    this.update();
    if (id) this.root.querySelector(".editor textarea")?.focus();
  }

  forgetAnswers() {
    for (const [id, view] of this.answers) if (!view.element.isConnected) this.answers.delete(id);
  }

  // What a turn's element depends on, but for the text of an answer that grows.
  stateOf({ user, answers, chosen }) {
    const place = (message) => {
      const all = versions(this.session.current, message);
      return [all.findIndex((version) => version.includes(message)), all.length];
    };
    const messages = answers.flat().map((message) => {
      const { id, status, left_out, error, stats } = message;
      return [id, status, left_out, error?.code, stats?.tokens, this.showsTokens(message)];
    });
    const head = answers[chosen]?.[0];
    return JSON.stringify([
      language(),
      chosen,
      messages,
      user && place(user),
      head && place(head),
      this.editing === user?.id,
      this.severalModels(),
    ]);
  }

  showsTokens(message) {
    return Boolean(message.tokens) && !(this.asText.get(message.id) ?? !this.settings.probabilities);
  }

  turnElement({ user, answers, chosen }) {
    const element = h("section", { class: "turn" });
    if (user) element.append(this.editing === user.id ? this.editor(user) : this.question(user));
    if (!answers.length) return element;
    const isCompared = answers.length > 1;
    const columns = answers.map((messages, i) =>
      this.answerElement(messages, { isCompared, isChosen: i === chosen }),
    );
    element.append(h("div", { class: isCompared ? "answers compared" : "answers" }, columns));
    return element;
  }

  question(user) {
    return h(
      "article",
      { class: "question", "aria-label": t("you") },
      h("div", { class: "bubble" }, user.content),
      h(
        "div",
        { class: "actions" },
        this.versionButtons(user),
        iconButton("copy", t("copy"), { class: "small", "data-action": "copy", "data-id": user.id }),
        iconButton("edit", t("edit"), { class: "small at-rest", "data-action": "edit", "data-id": user.id }),
      ),
    );
  }

  editor(user) {
    const input = h("textarea", {
      class: "field-input",
      rows: Math.min(12, user.content.split("\n").length + 1),
      "aria-label": t("editMessage"),
    });
    input.value = user.content;
    const send = () => {
      if (!input.value.trim()) return;
      this.editing = null;
      this.session.edit(user, input.value.trim());
    };
    input.addEventListener("keydown", (event) => {
      if (event.isComposing || event.keyCode === 229) return;
      if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        send();
      } else if (event.key === "Escape") {
        event.stopPropagation();
        this.edit(null);
      }
    });
    return h(
      "article",
      { class: "question editor", "aria-label": t("editMessage") },
      input,
      h(
        "div",
        { class: "actions" },
        h("button", { type: "button", class: "button small", onclick: () => this.edit(null) }, t("cancel")),
        h("button", { type: "button", class: "button small primary", onclick: send }, t("send")),
      ),
    );
  }

  answerElement(messages, { isCompared, isChosen }) {
    const head = messages[0];
    const isRunning = messages.some(({ status }) => status === "running");
    const results = new Map(messages.filter(({ role }) => role === "tool").map((m) => [m.tool_call_id, m.content]));
    const context = {
      results: (id) => results.get(id) ?? null,
      confirmations: this.confirmations,
      tooltip: this.tooltip,
      openThoughts: this.openThoughts,
      showsTokens: (message) => this.showsTokens(message),
      isRunning: () => this.session.isRunning(),
      retry: (message) => this.session.retry(message),
      retryShorter: (message) => this.session.retry(message, { dropsOldest: true }),
    };
    const name = isCompared || this.severalModels() ? head.model : "";
    const element = h("article", {
      class: "answer",
      "aria-label": t("answerOf", { model: head.model }),
      "aria-busy": isRunning ? "true" : null,
    });
    if (name) element.append(h("h2", { class: "model-name" }, name));
    for (const message of messages) {
      if (message.role !== "assistant") continue;
      const view = new AnswerView(message, context);
      this.answers.set(message.id, view);
      element.append(view.element);
    }
    if (!isRunning) element.append(this.footer(messages, isCompared, isChosen));
    if (isCompared) element.classList.toggle("chosen", isChosen);
    return element;
  }

  footer(messages, isCompared, isChosen) {
    const head = messages[0];
    const hasTokens = messages.some(({ tokens }) => tokens);
    const action = (name, picture, label, more = {}) =>
      iconButton(picture, label, { class: "small", "data-action": name, "data-id": head.id, ...more });
    const atRest = { class: "small at-rest" };
    const goesOn =
      isCompared &&
      h(
        "button",
        {
          type: "button",
          class: "button small at-rest",
          "data-action": "pick",
          "data-id": head.id,
          "aria-pressed": String(isChosen),
        },
        isChosen && icon("check"),
        t(isChosen ? "goesOn" : "goOnWith"),
      );
    return h(
      "div",
      { class: "footer" },
      h(
        "div",
        { class: "actions" },
        this.versionButtons(head),
        action("copy-answer", "copy", t("copy")),
        action("regenerate", "retry", t("regenerate"), atRest),
        hasTokens &&
          action("tokens", "token", t("showTokens"), {
            "aria-pressed": String(messages.some((m) => this.showsTokens(m))),
          }),
        goesOn,
      ),
      h("p", { class: "stats" }, statsOf(messages)),
    );
  }

  versionButtons(message) {
    const all = versions(this.session.current, message);
    if (all.length < 2) return null;
    const at = all.findIndex((version) => version.includes(message));
    const step = (by, picture, label) =>
      iconButton(picture, label, {
        class: "small",
        "data-action": by < 0 ? "previous" : "next",
        "data-id": message.id,
        disabled: !all[at + by],
      });
    return h(
      "span",
      { class: "versions at-rest", role: "group", "aria-label": t("versions") },
      step(-1, "left", t("previousVersion")),
      h("span", {}, `${at + 1}/${all.length}`),
      step(1, "right", t("nextVersion")),
    );
  }

  clicked(event) {
    const button = event.target.closest("[data-action]");
    if (!button) return;
    const { action, id } = button.dataset;
    const message = id ? this.session.current.messages.find((candidate) => candidate.id === id) : null;
    const actions = {
      copy: () => copy(message.content, button),
      "copy-code": () => copy(button.parentElement.querySelector("pre").textContent, button),
      "copy-answer": () => copy(this.textOfAnswer(message), button),
      edit: () => this.edit(id),
      regenerate: () => this.session.regenerate(message),
      pick: () => this.session.pick(message),
      previous: () => this.stepVersion(message, -1),
      next: () => this.stepVersion(message, 1),
      tokens: () => this.toggleTokens(message),
    };
    actions[action]();
  }

  stepVersion(message, by) {
    const key = by < 0 ? "previous" : "next";
    this.session.showVersion(message, by);
    const shown = versions(this.session.current, message)
      .flat()
      .map(({ id }) => id);
    const buttons = [...this.root.querySelectorAll(`[data-action="${key}"]`)];
    buttons.find((button) => shown.includes(button.dataset.id) && !button.disabled)?.focus();
  }

  answerAt(head) {
    const found = turns(this.session.current).flatMap(({ answers }) => answers);
    return found.find(([first]) => first === head) ?? [head];
  }

  textOfAnswer(head) {
    const texts = this.answerAt(head)
      .filter(({ role }) => role === "assistant")
      .map(({ content }) => content.trim());
    return texts.filter(Boolean).join("\n\n");
  }

  toggleTokens(head) {
    const messages = this.answerAt(head).filter(({ tokens }) => tokens);
    const shows = messages.some((message) => this.showsTokens(message));
    for (const message of messages) this.asText.set(message.id, shows);
    this.update();
  }
}

// Of all messages of an answer together.
function statsOf(messages) {
  const answers = messages.filter(({ stats }) => stats);
  if (!answers.length) return "";
  const first = answers[0].stats.first_token;
  const counted = answers.filter(({ stats }) => stats.tokens !== undefined);
  const tokens = counted.reduce((sum, { stats }) => sum + stats.tokens, 0);
  // The first token of each message came after reading the prompt: it is not part of the writing.
  const timed = counted.reduce((sum, { stats }) => sum + Math.max(stats.tokens - 1, 0), 0);
  const writing = counted.reduce((sum, { stats }) => sum + (stats.writing ?? 0), 0);
  const parts = [];
  if (counted.length === answers.length)
    parts.push(t(tokens === 1 ? "statsToken" : "statsTokens", { n: number(tokens) }));
  if (timed >= MIN_TIMED && writing > 0)
    parts.push(t("statsSpeed", { n: number(timed / writing, timed / writing < 10 ? 1 : 0) }));
  if (first !== undefined) parts.push(t("statsFirst", { seconds: seconds(first) }));
  parts.push(t("statsSeed", { seed: answers[0].seed }));
  return parts.join(" · ");
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copyTheOldWay(text); // the clipboard's API is missing on pages without TLS
  }
  button.replaceChildren(icon("check"));
  button.dispatchEvent(new CustomEvent("copied", { bubbles: true }));
  setTimeout(() => button.replaceChildren(icon("copy")), 1500);
}

function copyTheOldWay(text) {
  const area = h("textarea", { class: "sr-only", "aria-hidden": "true" });
  area.value = text;
  document.body.append(area);
  const focused = document.activeElement;
  area.select();
  document.execCommand("copy");
  area.remove();
  focused?.focus();
}
