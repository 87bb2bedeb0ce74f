// Conversations that come from outside: a file that is imported, an entry of the browser's storage. Checked field by
// field, and copied, so that nothing else gets in. What is wrong is thrown as an Error that says where.

const ROLES = ["user", "assistant", "tool"];
const STATUSES = ["done", "stopped", "length", "failed"];
const MAX_TEXT = 4_000_000; // characters of one field

function fail(where, problem) {
  throw new Error(`${where}: ${problem}`);
}

function text(value, where, fallback) {
  if (value === undefined || value === null) {
    if (fallback !== undefined) return fallback;
    fail(where, "is missing");
  }
  if (typeof value !== "string") fail(where, "is not a text");
  if (value.length > MAX_TEXT) fail(where, `has more than ${MAX_TEXT} characters`);
  return value;
}

function number(value, where, fallback) {
  if (value === undefined || value === null) return fallback;
  if (typeof value !== "number" || !Number.isFinite(value)) fail(where, "is not a number");
  return value;
}

function list(value, where) {
  if (!Array.isArray(value)) fail(where, "is not a list");
  return value;
}

function object(value, where) {
  if (value === null || typeof value !== "object" || Array.isArray(value)) fail(where, "is not an object");
  return value;
}

// A copy of a conversation. Messages must come after their parents, and chosen children must be children.
export function checkConversation(value, where = "conversation") {
  object(value, where);
  const conversation = {
    id: text(value.id, `${where}.id`),
    title: text(value.title, `${where}.title`, ""),
    system: text(value.system, `${where}.system`, ""),
    created: number(value.created, `${where}.created`, Date.now()),
    modified: number(value.modified, `${where}.modified`, Date.now()),
    first: text(value.first, `${where}.first`, null),
    messages: [],
  };
  const byId = new Map();
  list(value.messages, `${where}.messages`).forEach((entry, i) => {
    const message = checkMessage(entry, `${where}.messages[${i}]`);
    if (byId.has(message.id)) fail(`${where}.messages[${i}].id`, "is there twice");
    if (message.parent !== null && !byId.has(message.parent)) {
      fail(`${where}.messages[${i}].parent`, "is no message before this one");
    }
    byId.set(message.id, message);
    conversation.messages.push(message);
  });
  for (const message of conversation.messages)
    checkChoice(byId, message.next, message.id, `${where}: next of a message`);
  checkChoice(byId, conversation.first, null, `${where}.first`);
  return conversation;
}

function checkChoice(byId, child, parent, where) {
  if (child !== null && byId.get(child)?.parent !== parent) fail(where, "is not one of its messages");
}

function checkMessage(value, where) {
  object(value, where);
  const role = value.role;
  if (!ROLES.includes(role)) fail(`${where}.role`, `is not one of ${ROLES.join(", ")}`);
  const message = {
    id: text(value.id, `${where}.id`),
    parent: text(value.parent, `${where}.parent`, null),
    next: text(value.next, `${where}.next`, null),
    role,
    content: text(value.content, `${where}.content`),
    created: number(value.created, `${where}.created`, Date.now()),
  };
  if (role === "tool") {
    message.name = text(value.name, `${where}.name`, "");
    message.tool_call_id = text(value.tool_call_id, `${where}.tool_call_id`, "");
  }
  if (role === "assistant") Object.assign(message, checkAnswer(value, where));
  return message;
}

function checkAnswer(value, where) {
  const answer = {
    // An answer that was being written when the page was closed has stopped.
    status: STATUSES.includes(value.status) ? value.status : "stopped",
    model: text(value.model, `${where}.model`, ""),
    seed: number(value.seed, `${where}.seed`, 0),
  };
  for (const key of ["reasoning_content", "group"]) {
    if (value[key] !== undefined && value[key] !== null) answer[key] = text(value[key], `${where}.${key}`);
  }
  if (value.left_out) answer.left_out = number(value.left_out, `${where}.left_out`);
  if (value.tool_calls) {
    answer.tool_calls = list(value.tool_calls, `${where}.tool_calls`).map((call, i) => {
      const at = `${where}.tool_calls[${i}]`;
      object(call, at);
      const fields = ["id", "name", "arguments"].map((key) => [key, text(call[key], `${at}.${key}`)]);
      return { ...Object.fromEntries(fields), ...(call.edited === true && { edited: true }) };
    });
  }
  if (value.offered) {
    answer.offered = list(value.offered, `${where}.offered`).map((name, i) => text(name, `${where}.offered[${i}]`));
  }
  if (value.stats) {
    object(value.stats, `${where}.stats`);
    const entries = Object.entries(value.stats).map(([key, entry]) => [
      key,
      number(entry, `${where}.stats.${key}`, null),
    ]);
    answer.stats = Object.fromEntries(entries);
  }
  if (value.error) {
    object(value.error, `${where}.error`);
    answer.error = {
      code: text(value.error.code, `${where}.error.code`, ""),
      message: text(value.error.message, `${where}.error.message`, ""),
    };
  }
  if (value.tokens)
    answer.tokens = list(value.tokens, `${where}.tokens`).map((token, i) =>
      checkToken(token, `${where}.tokens[${i}]`),
    );
  return answer;
}

// [text, log-probability, bytes or null, [[text, log-probability], ...]]
function checkToken(value, where) {
  const [word, logprob, bytes, top] = list(value, where);
  const entry = (pair) => [text(list(pair, where)[0], where), number(pair[1], where, 0)];
  return [
    text(word, where),
    number(logprob, where, 0),
    bytes === null ? null : list(bytes, where).map((byte) => number(byte, where, 0)),
    list(top, where).map(entry),
  ];
}
