// What the user does with conversations: send, stop, regenerate, edit, retry, pick. Keeps what is open and what runs.
import { writeAnswer } from "./answer.js";
import { Saver } from "./saver.js";
import { randomSeed } from "./settings.js";
import { markChanged } from "./storage.js";
import { append, choose, isBlank, newConversation, newId, pathTo, versions } from "./tree.js";

export class Session {
  // events: shape(conversation), grew(message), ended(message), run(conversation), wait(seconds or null),
  //   failed(message), saved(conversation), saveFailed(error), confirm(message, call, signal) -> Promise.
  // models() -> the models that answer now, one or two; tools() -> signatures that are offered.
  constructor({ settings, models, tools, events }) {
    Object.assign(this, { settings, models, tools, events });
    this.current = newConversation(settings.system);
    this.running = new Map(); // conversation id -> {conversation, abort}
    this.saver = new Saver({ onSaved: events.saved, onError: events.saveFailed });
  }

  isRunning(conversation = this.current) {
    return this.running.has(conversation.id);
  }

  startNew() {
    this.show(newConversation(this.settings.system));
  }

  // Shows a conversation; false where there is none of this id. Raises DamagedError.
  async open(id) {
    const conversation = this.running.get(id)?.conversation ?? (await this.saver.load(id));
    if (conversation) this.show(conversation);
    return conversation !== null;
  }

  show(conversation) {
    this.current = conversation;
    this.events.shape(conversation);
    this.events.run(conversation);
  }

  // Asks the question under the last shown message.
  send(text, parent) {
    const question = this.add(parent, { role: "user", content: text });
    return this.answer(question);
  }

  // The question in other words, beside the earlier one.
  edit(question, text) {
    const parent = pathTo(this.current, question).at(-2) ?? null;
    return this.send(text, parent);
  }

  // Another answer beside `head`, the first message of an answer.
  regenerate(head) {
    return this.answer(pathTo(this.current, head).at(-2) ?? null);
  }

  // After an error. An answer of which there is something stays beside the new one, but for columns of a comparison.
  retry(message, { dropsOldest = false } = {}) {
    const before = pathTo(this.current, message);
    const parent = before.at(-2) ?? null;
    const isHead = parent === null || parent.role === "user";
    if (isBlank(message) || (isHead && message.group)) {
      for (const key of ["error", "stats", "tokens", "tool_calls", "reasoning_content", "left_out"])
        delete message[key];
      message.next = null;
      const model = this.models().find(({ name }) => name === message.model) ?? this.models()[0];
      return this.run([{ parent, first: message, model, group: message.group, seed: message.seed }], {
        dropsOldest,
      });
    }
    const question = before.findLast(({ role }) => role === "user") ?? null;
    return this.answer(question, { dropsOldest });
  }

  stop() {
    this.running.get(this.current.id)?.abort.abort();
  }

  // Makes a message the chosen one at its place: another version, or the other column of a comparison.
  pick(message) {
    choose(this.current, message);
    this.touch(this.current);
    this.events.shape(this.current);
  }

  // Goes `step` versions on (or back).
  showVersion(message, step) {
    const all = versions(this.current, message);
    const at = all.findIndex((version) => version.includes(message));
    const wanted = all[at + step];
    if (wanted) this.pick(wanted[0]);
  }

  setSystem(text) {
    this.current.system = text;
    if (this.current.messages.length) this.touch(this.current);
  }

  rename(conversation, title) {
    conversation.title = title;
    this.touch(conversation, 0);
  }

  add(parent, fields) {
    const message = append(this.current, parent?.id ?? null, fields);
    markChanged(message);
    this.touch(this.current, 0);
    return message;
  }

  touch(conversation, delay) {
    conversation.modified = Date.now();
    this.saver.schedule(conversation, delay);
  }

  // Answers a question: one answer, or one of each model beside each other, with the same seed.
  answer(question, options = {}) {
    const models = this.models();
    const seed = this.settings.seed ?? randomSeed();
    const group = models.length > 1 ? newId("g") : undefined;
    const heads = models.map((model) => ({ parent: question, first: null, model, group, seed }));
    return this.run(heads, options);
  }

  async run(heads, { dropsOldest = false }) {
    const { current: conversation, events } = this;
    if (this.isRunning(conversation) || !heads.length) return;
    const abort = new AbortController();
    this.running.set(conversation.id, { conversation, abort });
    // All columns are there before the first word of one, and the first one is chosen.
    for (const head of heads) {
      head.first ??= append(conversation, head.parent?.id ?? null, {
        role: "assistant",
        content: "",
        status: "running",
      });
      head.first.group = head.group;
      if (!head.group) delete head.first.group;
    }
    if (heads.length > 1) choose(conversation, heads[0].first);
    events.run(conversation);
    const onChange = (message, kind) => {
      markChanged(message);
      this.touch(conversation);
      if (kind === "ended" && message.status === "failed") events.failed(message);
      if (kind === "added") events.shape(conversation);
      else events[kind](message);
    };
    const settings = structuredClone(this.settings);
    const common = {
      conversation,
      settings,
      dropsOldest,
      onChange,
      tools: this.tools(),
      signal: abort.signal,
      onWait: events.wait,
      now: () => performance.now() / 1000,
      confirm: settings.confirmTools ? (message, call) => events.confirm(message, call, abort.signal) : undefined,
    };
    try {
      await Promise.all(heads.map((head) => writeAnswer({ ...common, ...head })));
    } finally {
      this.running.delete(conversation.id);
      this.saver.saveNow(conversation);
      events.run(conversation);
      events.shape(conversation);
    }
  }
}
