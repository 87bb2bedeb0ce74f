// What the page asks the server: JSON and streams of events, with the key where one is needed, and errors of one kind.

const KEY = "minimind.key"; // in the session's storage: gone when the tab is closed
let keyInMemory = "";

export function apiKey() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return keyInMemory; // storage is switched off
  }
}

export function setApiKey(key) {
  keyInMemory = key;
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // It lasts as long as the page.
  }
}

// `code` is the server's word (queue_full, context_length_exceeded, invalid_api_key, ...), or one of ours: `gone` (no
// answer came), `cut` (the answer broke off), `bad_answer` (something else answered). `retryAfter` is in seconds.
export class ApiError extends Error {
  constructor(code, message, status = 0, retryAfter = 0) {
    super(message);
    Object.assign(this, { name: "ApiError", code, status, retryAfter });
  }
}

export const getPage = (signal) => askJson("api/page", { signal });

export const getRuns = (signal) => askJson("api/runs", { signal });

// What a run has logged after a step; -1 for all.
export const getRun = (id, after, signal) =>
  askJson(`api/runs/${id.split("/").map(encodeURIComponent).join("/")}?after=${after}`, { signal });

export async function isHealthy() {
  try {
    const response = await fetch("health", { cache: "no-store", signal: AbortSignal.timeout(5000) });
    return response.ok;
  } catch {
    return false;
  }
}

// A tool's result, or its error, as JSON text.
export async function runTool(name, argumentsText, signal) {
  const body = { arguments: argumentsText };
  return (await askJson(`api/tools/${encodeURIComponent(name)}`, { body, signal })).result;
}

// Asks for a chat completion; calls `onChunk` with every chunk of the stream.
export async function streamChat(body, { signal, onChunk }) {
  const response = await ask("v1/chat/completions", { body, signal });
  if (!response.headers.get("content-type")?.startsWith("text/event-stream")) {
    throw new ApiError("bad_answer", "the answer is no stream of events");
  }
  let isComplete = false;
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") {
        isComplete = true;
        break;
      }
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(chunk.error.code ?? "", chunk.error.message);
      onChunk(chunk);
    }
  } catch (error) {
    if (error instanceof ApiError || error.name === "AbortError") throw error;
    throw new ApiError("cut", String(error.message));
  }
  if (!isComplete) throw new ApiError("cut", "the stream ended early");
}

async function askJson(path, options) {
  const response = await ask(path, options);
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("bad_answer", "the answer is not JSON");
  }
}

async function ask(path, { body, signal }) {
  const headers = {};
  if (body !== undefined) headers["content-type"] = "application/json";
  if (apiKey()) headers.authorization = `Bearer ${apiKey()}`;
  let response;
  try {
    const method = body === undefined ? "GET" : "POST";
    response = await fetch(path, {
      method,
      headers,
      body: body && JSON.stringify(body),
      signal,
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("gone", String(error.message));
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

async function errorOf(response) {
  const retryAfter = Number(response.headers.get("retry-after")) || 0;
  try {
    const { error } = await response.json();
    return new ApiError(error.code ?? "", error.message, response.status, retryAfter);
  } catch {
    const code = response.status >= 502 && response.status <= 504 ? "gone" : "bad_answer"; // a proxy's words
    return new ApiError(code, `${response.status} ${response.statusText}`, response.status, retryAfter);
  }
}

// The data of each event of a stream: https://html.spec.whatwg.org/multipage/server-sent-events.html
export async function* events(stream) {
  const decoder = new TextDecoder();
  const reader = stream.getReader();
  let rest = "";
  let data = [];
  try {
    while (true) {
      const { done, value } = await reader.read();
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const lines = rest.split(/\r\n|\n|\r(?!$)/); // a \r at the end may be half of \r\n
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {}); // of a stream that has ended, or was left
  }
}
