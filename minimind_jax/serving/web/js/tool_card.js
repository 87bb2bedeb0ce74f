// A tool call as a card: its arguments, which can be edited before it runs, and its result.
import { h, icon } from "./dom.js";
import { t } from "./i18n.js";

// Args: call {name, arguments, edited}; result (JSON text) or null; isRunning; confirm {run(text), skip(), draft} where
// the user is to decide, or null.
export function toolCard({ call, result, isRunning, confirm }) {
  const head = h("div", { class: "tool-head" }, icon("tool"), h("code", {}, call.name));
  if (call.edited) head.append(h("span", { class: "quiet" }, t("argumentsEdited")));
  const card = h(
    "div",
    { class: "tool-card", role: "group", "aria-label": t("toolCall", { name: call.name }) },
    head,
  );
  if (confirm) card.append(form(call, confirm));
  else card.append(h("pre", {}, pretty(call.arguments)));
  if (result !== null) {
    const { isError, text } = readResult(result);
    const label = isError ? t("toolError") : t("toolResult");
    card.append(
      h(
        "div",
        { class: `tool-result${isError ? " failed" : ""}` },
        h("span", { class: "quiet" }, label),
        h("pre", {}, text),
      ),
    );
  } else if (!confirm && isRunning) {
    card.append(h("p", { class: "quiet" }, t("toolRuns")));
  }
  return card;
}

function form(call, confirm) {
  const problem = h("p", { class: "field-error", hidden: true, role: "alert" });
  const rows = Math.min(12, pretty(call.arguments).split("\n").length + 1);
  const input = h("textarea", {
    class: "field-input mono",
    rows,
    spellcheck: "false",
    "aria-label": t("toolArguments"),
  });
  input.value = confirm.draft ?? pretty(call.arguments);
  input.addEventListener("input", () => (confirm.draft = input.value)); // the card may be drawn anew meanwhile
  const run = () => {
    try {
      const value = JSON.parse(input.value);
      if (value === null || typeof value !== "object" || Array.isArray(value)) throw new Error(t("notAnObject"));
      confirm.run(input.value === pretty(call.arguments) ? call.arguments : JSON.stringify(value));
    } catch (error) {
      input.setAttribute("aria-invalid", "true");
      problem.textContent = t("badArguments", { problem: error.message });
      problem.hidden = false;
      input.focus();
    }
  };
  return h(
    "div",
    { class: "tool-form" },
    h("p", { class: "quiet" }, t("toolWaits")),
    input,
    problem,
    h(
      "div",
      { class: "tool-buttons" },
      h("button", { type: "button", class: "button small", onclick: () => confirm.skip() }, t("toolSkip")),
      h("button", { type: "button", class: "button small primary", onclick: run }, t("toolRun")),
    ),
  );
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

function readResult(text) {
  try {
    const value = JSON.parse(text);
    if (value !== null && typeof value === "object") {
      const key = ["error", "result"].find((name) => name in value);
      const found = value[key];
      if (key) return { isError: key === "error", text: typeof found === "string" ? found : JSON.stringify(found) };
    }
  } catch {
    // Not JSON: shown as it is.
  }
  return { isError: false, text };
}
