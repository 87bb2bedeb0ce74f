// A conversation as a tree of messages: every answer that was regenerated and every message that was edited keeps its
// place beside the new one, and the chosen ones make the path that is shown and sent.
//
// A conversation: {id, title, system, created, modified, first, messages}. A message: {id, parent, next, role, content,
// created, ...}; `parent` is null for the first ones, `next` is the chosen child. `first` is the chosen first message.
// An answer (role "assistant") also has `model`, `seed`, `status` (running, done, stopped, length, failed), and where
// there are any `reasoning_content`, `tool_calls`, `offered`, `group` (answers of one comparison share it), `stats`,
// `tokens`, `error`, `left_out`. A tool's result (role "tool") has `name` and `tool_call_id`.

export function newId(prefix) {
  const bytes = crypto.getRandomValues(new Uint8Array(9)); // randomUUID is missing on pages without TLS
  return prefix + Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function newConversation(system = "") {
  const now = Date.now();
  return { id: newId("c"), title: "", system, created: now, modified: now, first: null, messages: [] };
}

const indices = new WeakMap(); // of each conversation: messages by id, children by parent

function indexOf(conversation) {
  let index = indices.get(conversation);
  if (!index || index.size !== conversation.messages.length) {
    index = { size: conversation.messages.length, byId: new Map(), children: new Map() };
    for (const message of conversation.messages) {
      index.byId.set(message.id, message);
      if (!index.children.has(message.parent)) index.children.set(message.parent, []);
      index.children.get(message.parent).push(message);
    }
    indices.set(conversation, index);
  }
  return index;
}

const messageOf = (conversation, id) => indexOf(conversation).byId.get(id) ?? null;
const childrenOf = (conversation, id) => indexOf(conversation).children.get(id) ?? [];

// Adds a message under `parent` (null = at the beginning) and chooses it.
export function append(conversation, parent, fields) {
  const message = { id: newId("m"), parent, next: null, created: Date.now(), ...fields };
  const index = indexOf(conversation);
  conversation.messages.push(message);
  index.size += 1;
  index.byId.set(message.id, message);
  if (!index.children.has(parent)) index.children.set(parent, []);
  index.children.get(parent).push(message);
  choose(conversation, message);
  return message;
}

// Makes a message the one that its parent goes on with.
export function choose(conversation, message) {
  if (message.parent === null) conversation.first = message.id;
  else messageOf(conversation, message.parent).next = message.id;
}

// The chosen messages from `start` (null = from the beginning) on.
export function path(conversation, start = null) {
  const messages = [];
  const { byId } = indexOf(conversation);
  for (let id = start ? start.id : conversation.first; id !== null; id = byId.get(id).next)
    messages.push(byId.get(id));
  return messages;
}

// From the beginning to `message`, with it; [] for null.
export function pathTo(conversation, message) {
  const messages = [];
  for (let at = message; at; at = messageOf(conversation, at.parent)) messages.push(at);
  return messages.reverse();
}

// An answer from its first message: the assistant's messages and tool results up to the next question.
function answerFrom(conversation, head) {
  const messages = [];
  for (const message of path(conversation, head)) {
    if (message.role === "user") break;
    messages.push(message);
  }
  return messages;
}

// The alternatives at a message's place. Answers of one comparison are one alternative: a list of several messages.
export function versions(conversation, message) {
  const found = [];
  for (const sibling of childrenOf(conversation, message.parent)) {
    const group = sibling.group && found.find((version) => version[0].group === sibling.group);
    if (group) group.push(sibling);
    else found.push([sibling]);
  }
  return found;
}

// The conversation as it is shown: [{user, answers, chosen}]. `answers` has one list of messages for each column of a
// comparison, or one, or none yet; `chosen` is the number of the one that goes on.
export function turns(conversation) {
  const shown = [];
  let turn = null;
  let inAnswer = false;
  for (const message of path(conversation)) {
    if (message.role === "user") {
      turn = { user: message, answers: [], chosen: 0 };
      shown.push(turn);
      inAnswer = false;
    } else if (!inAnswer) {
      if (!turn) shown.push((turn = { user: null, answers: [], chosen: 0 }));
      const columns = versions(conversation, message).find((version) => version.includes(message));
      turn.answers = columns.map((head) => answerFrom(conversation, head));
      turn.chosen = columns.indexOf(message);
      inAnswer = true;
    }
  }
  return shown;
}

export const isBlank = (message) =>
  !message.content.trim() && !(message.reasoning_content ?? "").trim() && !message.tool_calls?.length;

// Messages in the form of the API; answers without anything are left out.
export function requestMessages(system, messages, { withThoughts = true } = {}) {
  const sent = system.trim() ? [{ role: "system", content: system }] : [];
  for (const message of messages) {
    if (message.role === "assistant") {
      if (isBlank(message)) continue;
      const answer = { role: "assistant", content: message.content };
      if (withThoughts && (message.reasoning_content ?? "").trim())
        answer.reasoning_content = message.reasoning_content;
      if (message.tool_calls?.length) {
        answer.tool_calls = message.tool_calls.map(({ id, name, arguments: text }) => ({
          id,
          type: "function",
          function: { name, arguments: text },
        }));
      }
      sent.push(answer);
    } else if (message.role === "tool") {
      sent.push({ role: "tool", name: message.name, tool_call_id: message.tool_call_id, content: message.content });
    } else {
      sent.push({ role: "user", content: message.content });
    }
  }
  return sent;
}

// A conversation's name: the user's, or the beginning of the first question; "" where there is neither.
export function titleOf(conversation) {
  if (conversation.title) return conversation.title;
  const question = path(conversation).find((message) => message.role === "user");
  const line = (question?.content ?? "").trim().split("\n")[0];
  const characters = [...line];
  return characters.length > 60 ? `${characters.slice(0, 59).join("")}…` : line;
}
