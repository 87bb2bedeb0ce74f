// Markdown as DOM nodes: what chat models write of CommonMark, with GitHub's tables.
//
// The text is untrusted. Nodes come from createElement and createTextNode alone, so HTML in it stays text; links are
// checked in markdown_links.js. The work grows linearly with the text: every level of nesting reads its lines once,
// and there are at most MAX_DEPTH levels; what is nested deeper is shown as it stands.
//
// Unlike CommonMark: a line break is a line break, `---` below a paragraph is a rule and not a heading (it would turn
// into one while the answer streams), two spaces nest a list below "1.", and a quote ends where `>` does.

import { renderInline } from "./markdown_inline.js";

const MAX_DEPTH = 12;
const BULLET = /^([-*+])(?=[ \t]|$)/;
const ORDERED = /^(\d{1,9})([.)])(?=[ \t]|$)/;

/** The text as a DocumentFragment. Headings begin at h3, below those of the page. */
export function renderMarkdown(text) {
  const fragment = document.createDocumentFragment();
  const lines = text.replace(/\r\n?/g, "\n").replaceAll("\0", "\uFFFD").split("\n");
  renderBlocks(lines, fragment, 0, false);
  return fragment;
}

/** `tight`: paragraphs stand in the parent itself, as in a list without blank lines. */
function renderBlocks(lines, parent, depth, tight) {
  let at = 0;
  while (at < lines.length) {
    if (isBlank(lines[at])) {
      at += 1;
      continue;
    }
    const block = blockAt(lines, at, depth, false);
    at = block ? block(parent) : paragraph(lines, at, parent, depth, tight);
  }
}

/** A function that renders the block which begins at this line and returns the line after it; null: a paragraph. */
function blockAt(lines, at, depth, inParagraph) {
  const { columns, rest } = indentOf(lines[at]);
  if (columns >= 4) {
    return inParagraph ? null : (parent) => indentedCode(lines, at, parent);
  }
  const fence = openingFence(rest);
  if (fence) {
    return (parent) => fencedCode(lines, at, parent, fence, columns);
  }
  if (/^#{1,6}(?:[ \t]|$)/.test(rest)) {
    return (parent) => heading(rest, at, parent);
  }
  if (isRule(rest)) {
    return (parent) => {
      parent.append(document.createElement("hr"));
      return at + 1;
    };
  }
  if (depth < MAX_DEPTH && rest.startsWith(">")) {
    return (parent) => quote(lines, at, parent, depth);
  }
  if (depth < MAX_DEPTH) {
    const marker = listMarker(rest);
    // In a paragraph, a year at the beginning of a line is no list.
    if (marker && !(inParagraph && (marker.empty || (marker.ordered && marker.number !== 1)))) {
      return (parent) => list(lines, at, parent, depth, marker);
    }
  }
  const alignments = tableAlignments(lines, at);
  return alignments && ((parent) => table(lines, at, parent, alignments));
}

function paragraph(lines, at, parent, depth, tight) {
  const begin = at;
  do {
    at += 1;
  } while (at < lines.length && !isBlank(lines[at]) && !blockAt(lines, at, depth, true));
  const text = lines.slice(begin, at).map((line) => line.replace(/^[ \t]+/, "")).join("\n").trimEnd();
  if (tight) {
    renderInline(text, parent);
  } else {
    appendText(parent, "p", text);
  }
  return at;
}

function heading(rest, at, parent) {
  const level = /^#+/.exec(rest)[0].length;
  let text = rest.slice(level).trim();
  let end = text.length;
  while (end > 0 && text[end - 1] === "#") {
    end -= 1;
  }
  if (end === 0 || text[end - 1] === " ") {
    text = text.slice(0, end).trimEnd(); // closing marks, as in "## Title ##"
  }
  appendText(parent, `h${Math.min(level + 2, 6)}`, text);
  return at + 1;
}

function openingFence(rest) {
  const [fence] = /^(?:`{3,}|~{3,})?/.exec(rest);
  const info = rest.slice(fence.length).trim();
  return fence && !(fence[0] === "`" && info.includes("`")) ? { mark: fence[0], length: fence.length, info } : null;
}

function closesFence(line, fence) {
  const text = line.trim();
  return text.length >= fence.length && text[0] === fence.mark && isAll(text, fence.mark);
}

function fencedCode(lines, at, parent, fence, columns) {
  const begin = at + 1;
  do {
    at += 1;
  } while (at < lines.length && !closesFence(lines[at], fence));
  code(lines.slice(begin, at).map((line) => unindent(line, columns)), parent, fence.info);
  return at + 1; // an unclosed fence, as while the answer streams, runs to the end
}

function indentedCode(lines, at, parent) {
  let end = at + 1;
  for (let next = end; next < lines.length; next += 1) {
    if (indentOf(lines[next]).columns >= 4) {
      end = next + 1;
    } else if (!isBlank(lines[next])) {
      break;
    }
  }
  code(lines.slice(at, end).map((line) => unindent(line, 4)), parent, "");
  return end;
}

function code(lines, parent, info) {
  const box = append(parent, "div", "md-code");
  if (info) {
    append(box, "div", "md-lang").textContent = info;
  }
  const pre = append(box, "pre");
  pre.tabIndex = 0; // it scrolls: the keyboard must reach it
  append(pre, "code").textContent = lines.map((line) => `${line}\n`).join("");
}

function quote(lines, at, parent, depth) {
  const inner = [];
  for (; at < lines.length; at += 1) {
    const { columns, rest } = indentOf(lines[at]);
    if (columns >= 4 || !rest.startsWith(">")) {
      break;
    }
    inner.push(rest.slice(/^[ \t]/.test(rest[1] ?? "") ? 2 : 1));
  }
  renderBlocks(inner, append(parent, "blockquote"), depth + 1, false);
  return at;
}

function listMarker(rest) {
  const match = BULLET.exec(rest) ?? ORDERED.exec(rest);
  if (!match || isRule(rest)) {
    return null;
  }
  const [text] = match;
  const { columns, rest: content } = indentOf(rest.slice(text.length));
  const spaces = content === "" || columns > 4 ? 1 : columns; // more than four spaces belong to the content
  return {
    kind: match[2] ?? match[1],
    ordered: match[2] !== undefined,
    number: match[2] === undefined ? 0 : Number(match[1]),
    empty: content === "",
    width: text.length + spaces,
    content: unindent(rest.slice(text.length), spaces),
  };
}

function list(lines, at, parent, depth, first) {
  const items = [];
  let [loose, blankBefore] = [false, false];
  while (at < lines.length) {
    const { columns, rest } = indentOf(lines[at]);
    const marker = columns < 4 ? listMarker(rest) : null;
    if (!marker || marker.kind !== first.kind) {
      break;
    }
    loose ||= blankBefore;
    const item = listItem(lines, at, depth, columns, marker);
    items.push(item.lines);
    loose ||= item.loose;
    blankBefore = item.blankAfter;
    at = item.next;
  }
  const element = append(parent, first.ordered ? "ol" : "ul");
  if (first.ordered && first.number !== 1) {
    element.start = first.number;
  }
  for (const item of items) {
    const li = append(element, "li");
    renderBlocks(item, li, depth + 1, !loose);
    li.dir = "auto";
  }
  return at;
}

/** The lines of one item without their indent: up to the next that stands left of its text and does not continue it. */
function listItem(lines, at, depth, columns, marker) {
  const width = columns + marker.width;
  const inner = [marker.content];
  let fence = openingFence(marker.content.trimStart());
  let [blanks, loose] = [0, false];
  for (at += 1; at < lines.length; at += 1) {
    const line = lines[at];
    if (isBlank(line)) {
      blanks += 1;
      continue;
    }
    const indent = indentOf(line);
    const belongs = fence || indent.columns >= columns + 2;
    const continues = blanks === 0 && inner.at(-1) !== "" && !listMarker(indent.rest) && !blockAt(lines, at, depth, true);
    if (!belongs && !continues) {
      break;
    }
    loose ||= blanks > 0 && !fence && indent.columns < width + 2;
    for (; blanks > 0; blanks -= 1) {
      inner.push("");
    }
    inner.push(unindent(line, width));
    if (!fence) {
      fence = openingFence(indent.rest);
    } else if (closesFence(line, fence)) {
      fence = null;
    }
  }
  return { lines: inner, next: at, loose, blankAfter: blanks > 0 };
}

/** The alignments of a table whose header is this line, as its second line gives them; null where there is none. */
function tableAlignments(lines, at) {
  const [header, ruler] = [lines[at], lines[at + 1]];
  if (ruler === undefined || !header.includes("|") || !ruler.includes("-") || !/^[-|: \t]+$/.test(ruler)) {
    return null;
  }
  const cells = tableCells(ruler);
  if (cells.length !== tableCells(header).length || !cells.every((cell) => /^:?-+:?$/.test(cell))) {
    return null;
  }
  return cells.map((cell) => {
    const [left, right] = [cell.startsWith(":"), cell.endsWith(":")];
    return right ? (left ? "md-center" : "md-right") : "";
  });
}

function tableCells(line) {
  let text = line.trim();
  text = text.startsWith("|") ? text.slice(1) : text;
  text = text.endsWith("|") && !text.endsWith("\\|") ? text.slice(0, -1) : text;
  const cells = [];
  let begin = 0;
  for (let bar = text.indexOf("|"); bar !== -1; bar = text.indexOf("|", bar + 1)) {
    if (text[bar - 1] !== "\\") {
      cells.push(text.slice(begin, bar));
      begin = bar + 1;
    }
  }
  cells.push(text.slice(begin));
  return cells.map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function table(lines, at, parent, alignments) {
  const box = append(parent, "div", "md-table");
  box.tabIndex = 0;
  const element = append(box, "table");
  const row = (section, tag, line) => {
    const tr = append(section, "tr");
    tableCells(line).forEach((cell, column) => {
      appendText(tr, tag, cell, alignments[column] ?? ""); // rows may be too long or too short
    });
  };
  row(append(element, "thead"), "th", lines[at]);
  at += 2;
  let body = null;
  while (at < lines.length && lines[at].includes("|")) {
    row((body ??= append(element, "tbody")), "td", lines[at]);
    at += 1;
  }
  return at;
}

/** Three or more of one of - * _, and nothing else but spaces. */
function isRule(rest) {
  const mark = rest[0];
  if (mark !== "-" && mark !== "*" && mark !== "_") {
    return false;
  }
  let count = 0;
  for (const character of rest) {
    if (character === mark) {
      count += 1;
    } else if (character !== " " && character !== "\t") {
      return false;
    }
  }
  return count >= 3;
}

function isAll(text, mark) {
  for (let i = 0; i < text.length; i += 1) {
    if (text[i] !== mark) {
      return false;
    }
  }
  return true;
}

function isBlank(line) {
  return /^[ \t]*$/.test(line);
}

/** How many columns a line is indented, with tab stops at every fourth, and what follows. */
function indentOf(line) {
  let columns = 0;
  let i = 0;
  for (; line[i] === " " || line[i] === "\t"; i += 1) {
    columns += line[i] === " " ? 1 : 4 - (columns % 4);
  }
  return { columns, rest: line.slice(i) };
}

/** The line without its first columns, as far as they are blank. */
function unindent(line, wanted) {
  let columns = 0;
  let i = 0;
  for (; columns < wanted && (line[i] === " " || line[i] === "\t"); i += 1) {
    columns += line[i] === " " ? 1 : 4 - (columns % 4);
  }
  return " ".repeat(Math.max(0, columns - wanted)) + line.slice(i);
}

function append(parent, tag, className = "") {
  const element = document.createElement(tag);
  if (className) {
    element.className = className;
  }
  parent.append(element);
  return element;
}

/**
 * A block of text. dir="auto" lets Arabic and Hebrew run their own way and ends what control characters began. It is
 * set last: an element that has it looks for the first letter anew with every child.
 */
function appendText(parent, tag, text, className = "") {
  const element = append(parent, tag, className);
  renderInline(text, element);
  element.dir = "auto";
}
