// One answer: asks the model, runs the tools that it calls, asks again, until it has answered. Knows nothing of the
// page.
import { runTool, streamChat } from "./api.js";
import { append, pathTo, requestMessages } from "./tree.js";
import { samplingFields } from "./settings.js";

const MAX_ROUNDS = 5; // of tool calls in one answer
const TOP_LOGPROBS = 5;
const DEFAULT_WAIT = 2; // seconds, where a full queue does not say how long
const QUEUE_TRIES = 60;

// Writes an answer under `parent`, into `conversation`.
//
// Args (one object):
//   first: an empty answer that is used for the first message, or null.
//   model: {name, max_context, thinking} of the page; settings, seed, group: as in the tree.
//   tools: the signatures that are offered; [] = none.
//   dropsOldest: leaves out the oldest turns where the conversation does not fit.
//   signal: stops it; what was written is kept.
//   onChange(message, kind): a message was added ("added"), grew ("grew") or has ended ("ended").
//   onWait(seconds or null): the queue is full and it waits, or waits no more.
//   confirm(message, call) -> the arguments to run it with, or null to skip it; undefined = calls run at once.
//   now(): seconds.
export async function writeAnswer(options) {
  const { conversation, tools, signal, onChange, seed } = options;
  let parent = options.parent;
  for (let round = 0; ; round++) {
    const message = options.first && round === 0 ? options.first : append(conversation, parent?.id ?? null, {});
    const offered = tools.map((tool) => tool.function.name);
    Object.assign(message, { role: "assistant", content: "", model: options.model.name, status: "running" });
    Object.assign(message, { seed: (seed + round) % 2 ** 32, ...(offered.length && { offered }) });
    if (options.group) message.group = options.group;
    onChange(message, "added");
    const isDone = await writeMessage(options, message);
    onChange(message, "ended");
    if (!isDone || !message.tool_calls) return message;
    if (round === MAX_ROUNDS) {
      message.error = { code: "tool_rounds", message: "" };
      onChange(message, "ended");
      return message;
    }
    parent = message;
    for (const call of message.tool_calls) {
      const result = await callTool(options, message, call);
      if (result === null) return message;
      const fields = { role: "tool", name: call.name, tool_call_id: call.id, content: result };
      parent = append(conversation, parent.id, fields);
      onChange(parent, "added");
    }
    if (signal.aborted) return message;
  }
}

// A call's result as JSON text; null where the answer was stopped.
async function callTool({ confirm, tools, signal, onChange }, message, call) {
  const refusal = (text) => JSON.stringify({ error: text });
  if (!tools.some((tool) => tool.function.name === call.name)) return refusal(`there is no function ${call.name}`);
  try {
    if (confirm) {
      const wanted = await confirm(message, call);
      if (wanted === null) return refusal("the user did not let this call run");
      if (wanted !== call.arguments) {
        Object.assign(call, { arguments: wanted, edited: true });
        onChange(message, "ended");
      }
    }
    return await runTool(call.name, call.arguments, signal);
  } catch (error) {
    if (error.name === "AbortError") {
      message.status = "stopped";
    } else {
      message.status = "failed";
      message.error = { code: error.code ?? "", message: error.message };
    }
    onChange(message, "ended");
    return null;
  }
}

// Fills in one message of the assistant. Whether it came to its end.
async function writeMessage(options, message) {
  const { signal, onChange, now } = options;
  const meter = new Meter(now());
  try {
    await ask(options, message, (chunk) => {
      takeChunk(message, chunk, meter, now());
      onChange(message, "grew");
    });
    if (message.status === "running") message.status = "done";
  } catch (error) {
    if (error.name === "AbortError" || signal.aborted) {
      message.status = "stopped";
    } else {
      message.status = "failed";
      message.error = { code: error.code ?? "", message: error.message };
    }
  }
  message.stats = meter.stats(now());
  return message.status === "done" || message.status === "length";
}

// Waits while the queue is full; drops the oldest turns where that is wanted.
async function ask(options, message, onChunk) {
  const { conversation, signal, onWait } = options;
  let messages = pathTo(conversation, message).slice(0, -1);
  let tries = 0;
  while (true) {
    try {
      return await streamChat(requestBody(options, message, messages), { signal, onChunk });
    } catch (error) {
      if (error.code === "queue_full" && tries < QUEUE_TRIES) {
        tries += 1;
        await countDown(Math.max(1, Math.round(error.retryAfter || DEFAULT_WAIT)), signal, onWait);
        continue;
      }
      const second = messages.findIndex(({ role }, i) => role === "user" && i > 0);
      if (error.code !== "context_length_exceeded" || !options.dropsOldest || second < 0) throw error;
      messages = messages.slice(second);
      message.left_out = (message.left_out ?? 0) + 1;
    }
  }
}

function requestBody({ conversation, model, settings, tools }, message, messages) {
  const withThoughts = model.thinking !== "never";
  const body = {
    model: model.name,
    messages: requestMessages(conversation.system, messages, { withThoughts }),
    stream: true,
    stream_options: { include_usage: true },
    seed: message.seed,
    ...samplingFields(settings),
  };
  if (model.thinking === "switch") body.chat_template_kwargs = { enable_thinking: settings.thinking };
  if (tools.length) body.tools = tools;
  if (settings.probabilities) Object.assign(body, { logprobs: true, top_logprobs: TOP_LOGPROBS });
  return body;
}

function takeChunk(message, chunk, meter, time) {
  if (chunk.usage) meter.usage = chunk.usage;
  const choice = chunk.choices[0];
  if (!choice) return;
  const { delta } = choice;
  if (delta.reasoning_content) {
    message.reasoning_content = (message.reasoning_content ?? "") + delta.reasoning_content;
    meter.thought(time);
  }
  if (delta.content) {
    message.content += delta.content;
    meter.wrote(time);
  }
  for (const { id, function: called } of delta.tool_calls ?? []) {
    message.tool_calls ??= [];
    message.tool_calls.push({ id, name: called.name, arguments: called.arguments });
    meter.wrote(time);
  }
  for (const entry of choice.logprobs?.content ?? []) {
    message.tokens ??= [];
    const top = entry.top_logprobs.map(({ token, logprob }) => [token, logprob]);
    message.tokens.push([entry.token, entry.logprob, entry.bytes, top]);
  }
  if (choice.finish_reason === "length") message.status = "length";
}

async function countDown(seconds, signal, onWait) {
  try {
    for (let left = seconds; left > 0; left--) {
      onWait(left);
      await pause(1000, signal);
    }
  } finally {
    onWait(null);
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    };
    if (signal.aborted) return reject(new DOMException("stopped", "AbortError"));
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", stop);
      resolve();
    }, milliseconds);
    signal.addEventListener("abort", stop, { once: true });
  });
}

// Times and counts of one message.
class Meter {
  constructor(start) {
    Object.assign(this, { start, first: null, last: null, thoughtFrom: null, thoughtTo: null, usage: null });
  }

  thought(time) {
    this.first ??= this.last = time;
    this.last = time;
    this.thoughtFrom ??= time;
  }

  wrote(time) {
    this.first ??= time;
    this.last = time;
    if (this.thoughtFrom !== null) this.thoughtTo ??= time;
  }

  // Seconds; tokens as the server counts them, which it does at the end only.
  stats(end) {
    const stats = { total: end - this.start };
    if (this.first !== null) {
      stats.first_token = this.first - this.start;
      stats.writing = this.last - this.first;
    }
    if (this.thoughtFrom !== null) stats.thinking = (this.thoughtTo ?? this.last) - this.thoughtFrom;
    if (this.usage) {
      stats.prompt_tokens = this.usage.prompt_tokens;
      stats.tokens = this.usage.completion_tokens;
    }
    return stats;
  }
}
