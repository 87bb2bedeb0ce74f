// Conversations in the browser (IndexedDB). Two stores: `heads` is what the list shows, `bodies` the conversations.
import { checkConversation } from "./check.js";
import { titleOf } from "./tree.js";

const NAME = "minimind";
const VERSION = 1;

let opened = null;
const changed = new Map(); // messages that this tab has changed since they were saved -> number of the last change
let nChanges = 0;
const channel = "BroadcastChannel" in globalThis ? new BroadcastChannel(NAME) : null;

// An entry that cannot be read; `raw` is what stands there.
export class DamagedError extends Error {
  constructor(message, raw) {
    super(message);
    Object.assign(this, { name: "DamagedError", raw });
  }
}

// Notes that a message differs from what is stored.
export const markChanged = (message) => changed.set(message, ++nChanges);

// Calls `listener` with the id of each conversation that another tab has saved or deleted.
export function onChangeElsewhere(listener) {
  channel?.addEventListener("message", ({ data }) => typeof data === "string" && listener(data));
}

// [{id, title, modified}], the last one first.
export async function listHeads() {
  const db = await open();
  const heads = await done(db.transaction("heads").objectStore("heads").getAll());
  const readable = heads.map((head) => ({
    id: String(head.id),
    title: typeof head.title === "string" ? head.title : "",
    modified: Number(head.modified) || 0,
  }));
  return readable.sort((a, b) => b.modified - a.modified);
}

// Null where there is none (any more). Raises DamagedError.
export async function load(id) {
  const db = await open();
  const raw = await done(db.transaction("bodies").objectStore("bodies").get(id));
  if (raw === undefined) return null;
  try {
    return checkConversation(raw);
  } catch (error) {
    throw new DamagedError(error.message, raw);
  }
}

// Saves a conversation. Messages that another tab has added in the meantime stay, and are added to `conversation`;
// where both have one, ours counts if this tab has changed it.
export async function save(conversation) {
  const db = await open();
  const transaction = db.transaction(["heads", "bodies"], "readwrite");
  const [heads, bodies] = [transaction.objectStore("heads"), transaction.objectStore("bodies")];
  const finished = committed(transaction);
  finished.catch(() => {}); // awaited below, after what may fail first
  const stored = await done(bodies.get(conversation.id));
  mergeStored(conversation, stored);
  const saved = [...changed].filter(([message]) => conversation.messages.includes(message));
  try {
    bodies.put(structuredClone(conversation));
    heads.put(headOf(conversation));
    await finished;
  } catch (error) {
    if (transaction.error === null) abortQuietly(transaction);
    throw error;
  }
  // What has changed again since then is still ours, and so is what will.
  for (const [message, number] of saved) {
    if (message.status !== "running" && changed.get(message) === number) changed.delete(message);
  }
  channel?.postMessage(conversation.id);
}

function mergeStored(conversation, stored) {
  let theirs;
  try {
    theirs = stored === undefined ? [] : checkConversation(stored).messages;
  } catch {
    theirs = []; // damaged: what we have is better
  }
  const mine = new Map(conversation.messages.map((message) => [message.id, message]));
  for (const message of theirs) {
    const own = mine.get(message.id);
    if (!own) conversation.messages.push(message);
    else if (!changed.has(own)) Object.assign(own, message, { next: own.next });
  }
}

const headOf = (conversation) => ({
  id: conversation.id,
  title: titleOf(conversation),
  modified: conversation.modified,
});

// Deletes an entry; what stood there, for `restore`.
export async function remove(id) {
  const db = await open();
  const transaction = db.transaction(["heads", "bodies"], "readwrite");
  const stores = ["heads", "bodies"].map((name) => transaction.objectStore(name));
  const kept = await Promise.all(stores.map((store) => done(store.get(id))));
  for (const store of stores) store.delete(id);
  await committed(transaction);
  channel?.postMessage(id);
  return kept;
}

export async function restore([head, body]) {
  const db = await open();
  const transaction = db.transaction(["heads", "bodies"], "readwrite");
  if (head !== undefined) transaction.objectStore("heads").put(head);
  if (body !== undefined) transaction.objectStore("bodies").put(body);
  await committed(transaction);
  channel?.postMessage((head ?? body).id);
}

export const isFull = (error) => error?.name === "QuotaExceededError";

function open() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, VERSION);
    request.onupgradeneeded = () => {
      for (const name of ["heads", "bodies"]) request.result.createObjectStore(name, { keyPath: "id" });
    };
    request.onsuccess = () => {
      request.result.onversionchange = () => request.result.close(); // a later version of the page, in another tab
      resolve(request.result);
    };
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("another tab holds the storage"));
  });
  return opened;
}

function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function committed(transaction) {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error ?? new Error("the browser did not save"));
  });
}

function abortQuietly(transaction) {
  try {
    transaction.abort();
  } catch {
    // It has ended already.
  }
}
