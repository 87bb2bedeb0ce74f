// Markdown within a paragraph: emphasis, code, links, line breaks. See markdown.js.
//
// One pass makes tokens, one over the `*` and `_` pairs them, one makes nodes. Each is linear: backtick runs are looked
// up by length, a bracket is looked at once, and an opener that no closer of a kind found is not searched again
// (CommonMark 0.31, appendix "A parsing strategy").

import { bareUrl, linkTarget, safeUrl } from "./markdown_links.js";

const MAX_NESTED = 16; // emphasis within emphasis; deeper, its marks are shown

const PLAIN = /[^\\`*_~[\]!<\nh]+/y;
const ESCAPABLE = /[!-/:-@[-`{-~]/;
const AUTOLINK = /<((?:https?:\/\/|mailto:)[^\s<>]{1,2048})>/iy;
const BREAK = /<br ?\/?>/iy;
const SPACE = /^\s?$/;
const PUNCTUATION = /[\p{P}\p{S}]/u;
const CJK = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}\u3000-\u303F\uFF00-\uFFEF]/u;

export function renderInline(text, parent) {
  build(tokenize(text), parent);
}

function tokenize(text) {
  const tokens = [];
  const marks = []; // runs of * _ ~~ that are not paired yet
  const brackets = []; // open [ and ![
  let closedLinks = 0; // brackets below this one contain a link, and cannot be one
  let backticks = null;
  let plain = "";
  const push = (token) => {
    if (plain) {
      tokens.push({ kind: "text", text: plain });
      plain = "";
    }
    tokens.push(token);
  };

  let at = 0;
  while (at < text.length) {
    const chunk = matchAt(PLAIN, text, at);
    if (chunk) {
      plain += chunk[0];
      at += chunk[0].length;
      continue;
    }
    const character = text[at];
    if (character === "\\") {
      const next = text[at + 1] ?? "";
      if (next === "\n") {
        push({ kind: "break" });
      } else {
        plain += ESCAPABLE.test(next) ? next : character + next;
      }
      at += 1 + next.length;
    } else if (character === "\n") {
      plain = plain.replace(/(?<! ) +$/, ""); // two spaces before it are the old way to ask for it
      push({ kind: "break" });
      at += 1;
    } else if (character === "`") {
      backticks ??= new BacktickRuns(text);
      const length = runLength(text, at);
      const end = backticks.closing(at, length);
      if (end === null) {
        plain += text.slice(at, at + length);
        at += length;
      } else {
        push({ kind: "code", text: codeText(text.slice(at + length, end)) });
        at = end + length;
      }
    } else if (character === "*" || character === "_" || character === "~") {
      const length = runLength(text, at);
      if (character === "~" && length !== 2) {
        plain += text.slice(at, at + length);
      } else {
        const mark = emphasisMark(text, at, length, marks.length);
        push(mark);
        marks.push(mark);
      }
      at += length;
    } else if (character === "[" || (character === "!" && text[at + 1] === "[")) {
      const literal = character === "[" ? "[" : "![";
      push({ kind: "text", text: literal });
      brackets.push({ token: tokens.length - 1, marks: marks.length });
      at += literal.length;
    } else if (character === "]") {
      const open = brackets.pop();
      const link = open && brackets.length >= closedLinks ? linkTarget(text, at + 1) : null;
      closedLinks = Math.min(closedLinks, brackets.length);
      if (link) {
        push({ kind: "end of link" });
        tokens[open.token] = { kind: "link", ...link };
        pairMarks(marks.splice(open.marks));
        closedLinks = brackets.length;
        at = link.end;
      } else {
        plain += "]";
        at += 1;
      }
    } else if (character === "<") {
      const address = matchAt(AUTOLINK, text, at);
      const lineBreak = matchAt(BREAK, text, at);
      if (address && safeUrl(address[1])) {
        push({ kind: "address", text: address[1].replace(/^mailto:/i, ""), href: address[1] });
        at += address[0].length;
      } else if (lineBreak) {
        push({ kind: "break" });
        at += lineBreak[0].length;
      } else {
        plain += character;
        at += 1;
      }
    } else {
      const url = character === "h" && !/[a-z\d]/i.test(text[at - 1] ?? "") ? bareUrl(text, at) : null;
      if (url) {
        push({ kind: "address", text: url, href: url });
      } else {
        plain += character;
      }
      at += url ? url.length : 1;
    }
  }
  push({ kind: "text", text: "" });
  pairMarks(marks);
  return tokens;
}

function matchAt(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text);
}

function runLength(text, at) {
  let end = at + 1;
  while (text[end] === text[at]) {
    end += 1;
  }
  return end - at;
}

/** Where runs of backticks of each length begin. */
class BacktickRuns {
  constructor(text) {
    this.begins = new Map();
    for (const { 0: run, index } of text.matchAll(/`+/g)) {
      if (!this.begins.has(run.length)) {
        this.begins.set(run.length, []);
      }
      this.begins.get(run.length).push(index);
    }
    for (const begins of this.begins.values()) {
      begins.reverse(); // the next one is last: taken by pop
    }
  }

  /** Where the first run of this length after `at` begins; asked with growing `at`. */
  closing(at, length) {
    const begins = this.begins.get(length) ?? [];
    while (begins.length && begins.at(-1) <= at) {
      begins.pop();
    }
    return begins.at(-1) ?? null;
  }
}

function codeText(text) {
  const line = text.replaceAll("\n", " ");
  const padded = line.length > 2 && line.startsWith(" ") && line.endsWith(" ") && line.trim() !== "";
  return padded ? line.slice(1, -1) : line;
}

/**
 * A run of * or _ and whether it may open or close emphasis.
 *
 * CommonMark wants a space or punctuation outside of marks that have punctuation inside. Chinese and Japanese put no
 * spaces, so their characters count as well: in **“好。”**他说 both runs are marks.
 */
function emphasisMark(text, at, length, order) {
  const before = characterBefore(text, at);
  const after = at + length < text.length ? String.fromCodePoint(text.codePointAt(at + length)) : "";
  const beforePunctuation = PUNCTUATION.test(before);
  const afterPunctuation = PUNCTUATION.test(after);
  const left = !SPACE.test(after) && (!afterPunctuation || SPACE.test(before) || beforePunctuation || CJK.test(before));
  const right = !SPACE.test(before) && (!beforePunctuation || SPACE.test(after) || afterPunctuation || CJK.test(after));
  const word = text[at] === "_"; // within a_word_with_underscores they mean nothing
  return {
    kind: "mark",
    character: text[at],
    order,
    length,
    left: length, // characters that are not part of a pair
    opens: left && (!word || !right || beforePunctuation),
    closes: right && (!word || !left || afterPunctuation),
    begun: [], // pairs that begin here, innermost first
    ended: [],
  };
}

function characterBefore(text, at) {
  if (at === 0) {
    return "";
  }
  const low = text.charCodeAt(at - 1);
  return low >= 0xdc00 && low < 0xe000 && at > 1 ? text.slice(at - 2, at) : text[at - 1];
}

/** Fills in `begun` and `ended` of the marks. */
function pairMarks(marks) {
  const openers = [];
  const searched = new Map(); // kind of closer -> openers before this one do not fit it
  for (const closer of marks) {
    const kind = `${closer.character}${closer.opens}${closer.length % 3}`;
    while (closer.closes && closer.left) {
      let i = openers.length - 1;
      const bottom = searched.get(kind) ?? 0;
      while (i >= 0 && openers[i].order >= bottom && !fits(openers[i], closer)) {
        i -= 1;
      }
      if (i < 0 || openers[i].order < bottom) {
        searched.set(kind, closer.order);
        break;
      }
      const opener = openers[i];
      const width = opener.left >= 2 && closer.left >= 2 ? 2 : 1;
      opener.begun.push(width);
      closer.ended.push(width);
      opener.left -= width;
      closer.left -= width;
      openers.length = opener.left ? i + 1 : i;
    }
    if (closer.opens && closer.left) {
      openers.push(closer);
    }
  }
}

function fits(opener, closer) {
  return (
    opener.character === closer.character &&
    // "Multiple of 3" rule: the middle marks of **a*b**
    !((opener.closes || closer.opens) && (opener.length + closer.length) % 3 === 0 && closer.length % 3 !== 0)
  );
}

function build(tokens, parent) {
  let node = parent;
  let link = null;
  const open = []; // emphasis around this place: an element, or null where it is too deep
  let nested = 0;
  let text = "";
  const flush = () => {
    if (text) {
      node.append(text);
      text = "";
    }
  };
  const add = (tag) => {
    flush();
    return node.appendChild(document.createElement(tag));
  };
  const begin = (literal, tag) => {
    const deep = nested >= MAX_NESTED;
    open.push(deep);
    if (deep) {
      text += literal;
    } else {
      nested += 1;
      node = add(tag);
    }
  };
  const end = (literal) => {
    if (open.pop()) {
      text += literal;
    } else {
      flush();
      nested -= 1;
      node = node.parentNode;
    }
  };
  for (const token of tokens) {
    if (token.kind === "text") {
      text += token.text;
    } else if (token.kind === "break") {
      add("br");
    } else if (token.kind === "code") {
      add("code").textContent = token.text;
    } else if (token.kind === "address") {
      if (link) {
        text += token.text;
      } else {
        anchor(add("a"), token).textContent = token.text;
      }
    } else if (token.kind === "link") {
      link = node = anchor(add("a"), token);
    } else if (token.kind === "end of link") {
      flush();
      if (!link.textContent) {
        link.textContent = link.getAttribute("href");
      }
      node = link.parentNode;
      link = null;
    } else {
      const { character, begun, ended, left } = token;
      for (const width of ended) {
        end(character.repeat(width));
      }
      text += character.repeat(left);
      for (const width of begun.reverse()) {
        begin(character.repeat(width), character === "~" ? "del" : width === 2 ? "strong" : "em");
      }
    }
  }
  flush();
}

function anchor(element, { href, title = "" }) {
  element.setAttribute("href", href);
  element.setAttribute("rel", "noopener noreferrer nofollow");
  element.setAttribute("target", "_blank");
  if (title) {
    element.setAttribute("title", title);
  }
  return element;
}
