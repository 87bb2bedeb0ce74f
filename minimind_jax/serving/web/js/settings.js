// What the user has set: sampling, switches, the system prompt. Kept in the browser; null = the server's default.
import { readObject, write } from "./local.js";

// Limits as the server has them. `above`: the smallest value itself is not allowed. `slider` has the ends of a slider.
export const SAMPLING = [
  { name: "temperature", min: 0, max: 100, step: 0.05, slider: [0, 2] },
  { name: "top_p", min: 0, above: true, max: 1, step: 0.01, slider: [0.01, 1] },
  { name: "top_k", min: 0, max: 2 ** 31 - 1, step: 1, integer: true, neutral: 0 },
  { name: "min_p", min: 0, max: 1, step: 0.01, slider: [0, 1], neutral: 0 },
  { name: "repetition_penalty", min: 0, above: true, max: 100, step: 0.05, slider: [0.5, 2], neutral: 1 },
  { name: "frequency_penalty", min: -2, max: 2, step: 0.05, slider: [-2, 2], neutral: 0 },
  { name: "presence_penalty", min: -2, max: 2, step: 0.05, slider: [-2, 2], neutral: 0 },
  { name: "max_tokens", min: 1, max: 2 ** 31 - 1, step: 1, integer: true },
  { name: "seed", min: 0, max: 2 ** 32 - 1, step: 1, integer: true },
];
export const MAX_STOPS = 16;

const SWITCHES = ["thinking", "confirmTools", "probabilities", "compare"];

// {temperature, ..., seed: number or null, stop: [text], system: text, model, second: name or "", thinking,
//  confirmTools, probabilities, compare: bool, tools: [name]}
export function loadSettings() {
  const stored = readObject("settings");
  const settings = { system: "", model: "", second: "", stop: [], tools: [] };
  for (const key of ["system", "model", "second"]) if (typeof stored[key] === "string") settings[key] = stored[key];
  for (const key of ["stop", "tools"]) {
    if (Array.isArray(stored[key])) settings[key] = stored[key].filter((text) => typeof text === "string");
  }
  for (const key of SWITCHES) settings[key] = stored[key] === true;
  for (const field of SAMPLING)
    settings[field.name] = isAllowed(field, stored[field.name]) ? stored[field.name] : null;
  return settings;
}

export const saveSettings = (settings) => write("settings", JSON.stringify(settings));

export function resetSampling(settings) {
  for (const field of SAMPLING) settings[field.name] = null;
  settings.stop = [];
}

export const isChanged = (settings) =>
  settings.stop.length > 0 || SAMPLING.some(({ name }) => settings[name] !== null);

export function isAllowed(field, value) {
  if (typeof value !== "number" || !Number.isFinite(value)) return false;
  if (field.integer && !Number.isInteger(value)) return false;
  return (field.above ? value > field.min : value >= field.min) && value <= field.max;
}

// The fields of a request that differ from the server's defaults; the seed is the caller's.
export function samplingFields(settings) {
  const fields = {};
  for (const { name } of SAMPLING) if (name !== "seed" && settings[name] !== null) fields[name] = settings[name];
  if (settings.stop.length) fields.stop = settings.stop;
  return fields;
}

export const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0];
