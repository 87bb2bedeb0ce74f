// Saves conversations as they change: at most about once a second, one save at a time.
import { load, save } from "./storage.js";

const DELAY = 800; // milliseconds

export class Saver {
  // onSaved(conversation), onError(error, conversation)
  constructor({ onSaved, onError }) {
    Object.assign(this, { onSaved, onError });
    this.waiting = new Map(); // conversation -> timer
    this.known = new Set(); // ids that have been saved or read
    this.working = Promise.resolve();
  }

  schedule(conversation, delay = DELAY) {
    if (this.waiting.has(conversation)) return;
    this.waiting.set(
      conversation,
      setTimeout(() => this.saveNow(conversation), delay),
    );
  }

  saveNow(conversation) {
    this.forget(conversation);
    this.working = this.working.then(async () => {
      try {
        await save(conversation);
        this.known.add(conversation.id);
        this.onSaved(conversation);
      } catch (error) {
        this.onError(error, conversation);
      }
    });
    return this.working;
  }

  forget(conversation) {
    clearTimeout(this.waiting.get(conversation));
    this.waiting.delete(conversation);
  }

  // Everything that waits, at once: the page is about to close.
  flush() {
    for (const conversation of [...this.waiting.keys()]) this.saveNow(conversation);
    return this.working;
  }

  // As storage.load, after what is being saved.
  async load(id) {
    await this.flush();
    return load(id);
  }
}
