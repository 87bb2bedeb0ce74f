// Where the links of a Markdown text lead, and which of them may. See markdown.js.

const MAX_PARENTHESES = 32; // within an address
const MAX_ADDRESS = 2048; // characters of an address, with its title

const SAFE_URL = /^(?:https?:\/\/|mailto:)[^\s\p{Cc}\p{Cf}]+$/iu;
// Printable ASCII but " < > [ ] and backticks: Chinese text may follow at once.
const BARE_URL = /https?:\/\/[!#-;=?-Z\\^_a-z{|}~]{1,2048}/y;

/** The address if a link may lead there: http, https or mailto, spelt out; else null. */
export function safeUrl(address) {
  return SAFE_URL.test(address) && URL.canParse(address) ? address : null;
}

/** The address and title in (...) at `at`, and where it ends; null where it is no link that is safe. */
export function linkTarget(text, at) {
  if (text[at] !== "(") {
    return null;
  }
  const limit = Math.min(text.length, at + MAX_ADDRESS);
  let i = skipSpaces(text, at + 1, limit);
  const begin = i;
  let address;
  if (text[i] === "<") {
    for (i += 1; i < limit && !/[<>\n]/.test(text[i]); i += 1);
    if (text[i] !== ">") {
      return null;
    }
    address = text.slice(begin + 1, i);
    i += 1;
  } else {
    let depth = 0;
    for (; i < limit && !/[\s\p{Cc}]/u.test(text[i]); i += 1) {
      if (text[i] === "\\") {
        i += 1;
      } else if (text[i] === "(") {
        depth += 1;
        if (depth > MAX_PARENTHESES) {
          return null;
        }
      } else if (text[i] === ")") {
        if (depth === 0) {
          break;
        }
        depth -= 1;
      }
    }
    address = text.slice(begin, i);
  }
  const href = safeUrl(address.replace(/\\([!-/:-@[-`{-~])/g, "$1"));
  if (!href) {
    return null;
  }
  const space = skipSpaces(text, i, limit);
  let title = "";
  if (space > i && /["'(]/.test(text[space] ?? "")) {
    const close = text[space] === "(" ? ")" : text[space];
    for (i = space + 1; i < limit && text[i] !== close; i += 1);
    title = text.slice(space + 1, i);
    i += 1;
  }
  i = skipSpaces(text, i, limit);
  return i < limit && text[i] === ")" ? { href, title, end: i + 1 } : null;
}

function skipSpaces(text, at, limit) {
  while (at < limit && /\s/.test(text[at])) {
    at += 1;
  }
  return at;
}

/** An address that stands in the text without any marks, less the punctuation of the sentence that ends with it. */
export function bareUrl(text, at) {
  BARE_URL.lastIndex = at;
  const match = BARE_URL.exec(text);
  if (!match) {
    return null;
  }
  const [url] = match;
  let end = url.length;
  let unopened = 0;
  for (const character of url) {
    unopened += character === ")" ? 1 : character === "(" ? -1 : 0;
  }
  while (/[!'*,.:;?_~\\|}]/.test(url[end - 1]) || (url[end - 1] === ")" && unopened > 0)) {
    unopened -= url[end - 1] === ")" ? 1 : 0;
    end -= 1;
  }
  return safeUrl(url.slice(0, end));
}
