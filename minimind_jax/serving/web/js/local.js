// Small things that the browser keeps: settings, drafts. Where storage is switched off or full, they last as long as
// the page.
const PREFIX = "minimind.";
const memory = new Map();

export function read(key, fallback = null) {
  if (memory.has(key)) return memory.get(key);
  try {
    return localStorage.getItem(PREFIX + key) ?? fallback;
  } catch {
    return fallback;
  }
}

// `null` removes the entry.
export function write(key, value) {
  try {
    if (value === null) localStorage.removeItem(PREFIX + key);
    else localStorage.setItem(PREFIX + key, value);
    memory.delete(key);
  } catch {
    memory.set(key, value);
  }
}

// A JSON object; a damaged one counts as none.
export function readObject(key) {
  try {
    const value = JSON.parse(read(key, "{}"));
    return value !== null && typeof value === "object" && !Array.isArray(value) ? value : {};
  } catch {
    return {};
  }
}
