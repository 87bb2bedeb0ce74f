// The language of the interface: texts by key, and the elements of the page that carry keys.
import { en } from "./texts_en.js";
import { zh } from "./texts_zh.js";
import { read, write } from "./local.js";

export const TEXTS = { en, zh };

// boot.js has set `lang` before the first paint.
export const language = () => (document.documentElement.lang.startsWith("zh") ? "zh" : "en");

export function setLanguage(name) {
  document.documentElement.lang = name === "zh" ? "zh-CN" : "en";
  write("language", name);
  translate(document.body);
}

// The text of a key; `{name}` in it is replaced by `values.name`. `fallback` is for keys that may be missing.
export function t(key, values = {}, fallback = undefined) {
  const text = TEXTS[language()][key] ?? fallback;
  if (text === undefined) throw new Error(`no text with the key ${key}`);
  return text.replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
}

// Fills in the texts of all elements under `root` that carry keys: data-i18n, data-i18n-label, data-i18n-placeholder.
export function translate(root) {
  for (const element of root.querySelectorAll("[data-i18n]")) element.textContent = t(element.dataset.i18n);
  for (const element of root.querySelectorAll("[data-i18n-label]")) {
    const label = t(element.dataset.i18nLabel);
    element.setAttribute("aria-label", label);
    if (element.tagName === "BUTTON") element.title = label;
  }
  for (const element of root.querySelectorAll("[data-i18n-placeholder]")) {
    element.placeholder = t(element.dataset.i18nPlaceholder);
  }
}

// Numbers with separators, by the language of the interface.
export const number = (value, digits = 0) =>
  new Intl.NumberFormat(document.documentElement.lang, {
    minimumFractionDigits: digits,
    maximumFractionDigits: digits,
  }).format(value);

// Seconds with as many digits as say something.
export const seconds = (value) => number(value, value < 10 ? 2 : 1);
