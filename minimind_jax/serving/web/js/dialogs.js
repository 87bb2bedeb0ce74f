// Dialogs and passing messages: help, the API key, toasts, banners.
import { h, iconButton } from "./dom.js";
import { t } from "./i18n.js";

const TOAST = 8000; // milliseconds
const isMac = /Mac|iPhone|iPad/.test(navigator.platform);

export function showHelp() {
  const command = isMac ? "⌘" : "Ctrl";
  const keys = [
    [["Enter"], "keySend"],
    [["Shift", "Enter"], "keyNewline"],
    [["Esc"], "keyStop"],
    [[command, "K"], "keySearch"],
    [[command, "Shift", "O"], "keyNew"],
    [["↑"], "keyEdit"],
    [["←", "→"], "keyTokens"],
    [[command, "/"], "keyHelp"],
  ];
  const rows = keys.map(([names, key]) =>
    h(
      "tr",
      {},
      h(
        "td",
        {},
        names.flatMap((name, i) => [i ? " + " : "", h("kbd", {}, name)]),
      ),
      h("td", {}, t(key)),
    ),
  );
  const dialog = h(
    "dialog",
    { class: "help", "aria-labelledby": "help-title" },
    h("h2", { id: "help-title" }, t("help")),
    h("table", { class: "keys" }, h("tbody", {}, rows)),
    h("p", { class: "quiet" }, t("helpStorage")),
    h(
      "div",
      { class: "dialog-buttons" },
      h("button", { type: "button", class: "button primary", onclick: () => dialog.close() }, t("close")),
    ),
  );
  open(dialog);
}

// Asks for the server's key; the text, never empty.
export function askKey(wasWrong) {
  return new Promise((resolve) => {
    const input = h("input", {
      type: "password",
      class: "field-input",
      id: "key",
      autocomplete: "off",
      required: true,
    });
    const form = h(
      "form",
      { method: "dialog" },
      h("h2", { id: "key-title" }, t("keyTitle")),
      h("p", {}, t("keyText")),
      wasWrong && h("p", { class: "field-error", role: "alert" }, t("errorKey")),
      h("label", { for: "key" }, t("key")),
      input,
      h("div", { class: "dialog-buttons" }, h("button", { class: "button primary" }, t("keySet"))),
    );
    const dialog = h("dialog", { "aria-labelledby": "key-title" }, form);
    dialog.addEventListener("cancel", (event) => event.preventDefault()); // nothing works without the key
    form.addEventListener("submit", () => resolve(input.value.trim()));
    open(dialog);
  });
}

function open(dialog) {
  const focused = document.activeElement;
  dialog.addEventListener("close", () => {
    dialog.remove();
    focused?.focus();
  });
  document.body.append(dialog);
  dialog.showModal();
}

// A message that goes away by itself. `action`: {label, run} or null.
export function toast(text, action = null) {
  const box = h("div", { class: "toast" }, h("span", {}, text));
  const timer = setTimeout(() => box.remove(), TOAST);
  const close = () => {
    clearTimeout(timer);
    box.remove();
  };
  if (action) {
    box.append(
      h(
        "button",
        {
          type: "button",
          class: "button small",
          onclick: () => {
            close();
            action.run();
          },
        },
        action.label,
      ),
    );
  }
  box.append(iconButton("close", t("close"), { class: "small", onclick: close }));
  document.getElementById("toasts").append(box);
}

// A line at the top that stays until it is taken away: one for each `name`. Null takes it away.
// `detail` may change without a word to screen readers, and buttons keep the focus.
export function banner(name, text, { isError = false, detail = "", action = null, mayClose = false } = {}) {
  const root = document.getElementById("banners");
  const old = [...root.children].find((element) => element.dataset.name === name);
  if (text === null) {
    old?.remove();
    return;
  }
  if (old && old.dataset.text === text) {
    old.querySelector(".detail").textContent = detail;
    return;
  }
  const line = h(
    "div",
    { class: `banner${isError ? " error" : ""}`, "data-name": name, "data-text": text },
    h("span", { role: "alert" }, text),
    h("span", { class: "detail" }, detail),
  );
  if (action)
    line.append(h("button", { type: "button", class: "button small", onclick: action.run }, action.label));
  if (mayClose) line.append(iconButton("close", t("close"), { class: "small", onclick: () => line.remove() }));
  if (old) old.replaceWith(line);
  else root.append(line);
}

// For screen readers only: what has happened, once, and never token by token.
export function announce(text) {
  document.getElementById("announcer").textContent = text;
}

export function download(name, text, type) {
  const link = h("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
