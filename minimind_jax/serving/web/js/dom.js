// Making elements. Text always becomes a text node, so nothing that a model or a file says is read as HTML.

// An element: h("button", { class: "x", onclick: f, "aria-label": "y" }, "text", child, ...). Null and false are left
// out.
export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "value") element.value = value;
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// Each a list of paths on a 24 by 24 grid.
const ICONS = {
  menu: ["M4 7h16", "M4 12h16", "M4 17h16"],
  more: [
    "M5 11a1 1 0 1 0 0 2a1 1 0 1 0 0-2",
    "M12 11a1 1 0 1 0 0 2a1 1 0 1 0 0-2",
    "M19 11a1 1 0 1 0 0 2a1 1 0 1 0 0-2",
  ],
  plus: ["M12 5v14", "M5 12h14"],
  close: ["M6 6l12 12", "M18 6L6 18"],
  upload: ["M12 16V4", "M7 9l5-5 5 5", "M5 20h14"],
  download: ["M12 4v12", "M7 11l5 5 5-5", "M5 20h14"],
  chart: ["M4 4v16h16", "M8 15l4-5 3 3 5-7"],
  sliders: ["M4 7h9", "M17 7h3", "M15 5v4", "M4 17h3", "M11 17h9", "M9 15v4"],
  help: [
    "M9.2 9a2.9 2.9 0 1 1 4.3 2.6c-1 .6-1.5 1.1-1.5 2.2",
    "M12 17.2v.1",
    "M12 3a9 9 0 1 0 0 18a9 9 0 1 0 0-18",
  ],
  down: ["M12 5v14", "M6 13l6 6 6-6"],
  send: ["M12 19V5", "M6 11l6-6 6 6"],
  stop: ["M7 7h10v10H7z"],
  copy: ["M9 9h10v11H9z", "M15 5H5v11h1"],
  check: ["M5 13l4 4L19 7"],
  retry: ["M20 12a8 8 0 1 1-2.5-5.8", "M20 4v4h-4"],
  edit: ["M4 20h4L19 9l-4-4L4 16z", "M13 7l4 4"],
  trash: ["M5 7h14", "M10 4h4", "M7 7l1 13h8l1-13"],
  left: ["M15 6l-6 6 6 6"],
  right: ["M9 6l6 6-6 6"],
  sun: [
    "M12 8a4 4 0 1 0 0 8a4 4 0 1 0 0-8",
    "M12 2v2",
    "M12 20v2",
    "M2 12h2",
    "M20 12h2",
    "M5 5l1.4 1.4",
    "M17.6 17.6L19 19",
    "M5 19l1.4-1.4",
    "M17.6 6.4L19 5",
  ],
  moon: ["M20 14.5A8.5 8.5 0 1 1 9.5 4a7 7 0 0 0 10.5 10.5z"],
  auto: ["M12 3a9 9 0 1 0 0 18a9 9 0 1 0 0-18", "M12 3v18", "M15 4v16", "M18 6v12"],
  bulb: [
    "M9 18h6",
    "M10 21h4",
    "M12 3a6 6 0 0 0-3.6 10.8c.7.6 1.1 1.3 1.1 2.2h5c0-.9.4-1.6 1.1-2.2A6 6 0 0 0 12 3z",
  ],
  tool: [
    "M14.5 6.5a4 4 0 0 1 5-1l-2.7 2.7 1.5 1.5L21 7a4 4 0 0 1-5.4 4.6L8 19.2a2 2 0 0 1-3-3l7.5-7.5a4 4 0 0 1 2-2.2z",
  ],
  columns: ["M4 5h16v14H4z", "M12 5v14"],
  token: ["M4 18h3v-6H4z", "M10.5 18h3V6h-3z", "M17 18h3v-9h-3z"],
};

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  for (const d of ICONS[name]) {
    const path = document.createElementNS(svg.namespaceURI, "path");
    path.setAttribute("d", d);
    svg.append(path);
  }
  return svg;
}

// A button that shows an icon only; `label` is its name and its tooltip.
export function iconButton(name, label, attributes = {}) {
  const { class: more = "", ...rest } = attributes;
  const all = { type: "button", class: `icon-button ${more}`.trim(), "aria-label": label, title: label, ...rest };
  return h("button", all, icon(name));
}

// Makes `element` show the children of `fragment`. What is the same at the beginning stays: selections survive, and a
// long answer that grows at its end costs little.
export function showChildren(element, fragment) {
  let old = element.firstChild;
  while (old && fragment.firstChild && old.isEqualNode(fragment.firstChild)) {
    fragment.firstChild.remove();
    old = old.nextSibling;
  }
  while (old) {
    const next = old.nextSibling;
    old.remove();
    old = next;
  }
  element.append(fragment);
}
