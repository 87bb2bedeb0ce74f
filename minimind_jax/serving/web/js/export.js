// Conversations as files: JSON that can be imported again, and lines for supervised fine-tuning.
import { checkConversation } from "./check.js";
import { isBlank, newId, path, titleOf } from "./tree.js";

const FORMAT = "minimind-jax.conversations";
const VERSION = 1;

export const toJson = (conversations) =>
  `${JSON.stringify({ format: FORMAT, version: VERSION, conversations }, null, 1)}\n`;

// The conversations of a file, all of them or none. Throws an Error that says what is wrong.
export function fromJson(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch (error) {
    throw new Error(`not JSON: ${error.message}`);
  }
  if (file?.format !== FORMAT) throw new Error(`format is not ${FORMAT}`);
  if (file.version !== VERSION) throw new Error(`version is not ${VERSION}`);
  if (!Array.isArray(file.conversations)) throw new Error("conversations: is not a list");
  return file.conversations.map((conversation, i) => checkConversation(conversation, `conversations[${i}]`));
}

// A conversation that can stand beside one with the same id.
export const asNew = (conversation) => ({ ...conversation, id: newId("c") });

// The shown path as one line of training data, in MiniMind's form: tools and calls are JSON in strings. Answers that
// were stopped or cut off are context that is not learnt (`weight` 0). Null where there is nothing to learn.
export function toSftLine(conversation, tools) {
  const messages = path(conversation).filter((message) => message.role !== "assistant" || !isBlank(message));
  const last = messages.findLastIndex(({ role }) => role === "assistant");
  const used = messages.slice(0, last + 1);
  const offered = new Set(used.flatMap((message) => message.offered ?? []));
  const signatures = tools.filter((tool) => offered.has(tool.function.name));
  const lines = used.map(sftMessage);
  if (!lines.some(({ role, weight }) => role === "assistant" && weight !== 0)) return null;
  if (conversation.system.trim() || signatures.length) {
    const system = { role: "system", content: conversation.system };
    if (signatures.length) system.tools = JSON.stringify(signatures);
    lines.unshift(system);
  }
  return `${JSON.stringify({ conversations: lines })}\n`;
}

function sftMessage(message) {
  const line = { role: message.role, content: message.content };
  if (message.role !== "assistant") return line;
  if ((message.reasoning_content ?? "").trim()) line.reasoning_content = message.reasoning_content;
  if (message.tool_calls?.length) {
    const calls = message.tool_calls.map(({ name, arguments: text }) => ({ name, arguments: parsed(text) }));
    line.tool_calls = JSON.stringify(calls);
  }
  if (message.status !== "done") line.weight = 0;
  return line;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return {}; // the server lets only JSON become a call
  }
}

// A file's name without what file systems refuse.
export function fileName(conversation, ending) {
  const title = titleOf(conversation)
    .replace(/[^\p{L}\p{N}]+/gu, "-")
    .replace(/^-+|-+$/g, "")
    .slice(0, 40);
  return `${title || "chat"}.${ending}`;
}
