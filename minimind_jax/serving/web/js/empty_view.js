// The screen before the first question: which model this is, and what it can be asked.
import { h } from "./dom.js";
import { language, number, t } from "./i18n.js";

// models: those that answer. ask(text) sends a question.
export function emptyView(page, models, ask) {
  const suggestions = page.suggestions[language()] ?? [];
  const facts = models.map((model) => h("p", { class: "quiet" }, factsOf(model)));
  return h(
    "div",
    { class: "welcome" },
    h("h1", {}, t("welcome")),
    facts,
    suggestions.length > 0 &&
      h(
        "ul",
        { class: "suggestions", "aria-label": t("suggestions") },
        suggestions.map((text) =>
          h("li", {}, h("button", { type: "button", class: "suggestion", onclick: () => ask(text) }, text)),
        ),
      ),
  );
}

// A model that is no checkpoint of ours has no step.
function factsOf({ name, parameters, step, max_context }) {
  const parts = [t("modelParameters", { n: inMillions(parameters) })];
  if (step) parts.push(t("modelStep", { step: number(step) }));
  parts.push(t("modelContext", { n: number(max_context) }));
  return `${name} · ${parts.join(" · ")}`;
}

const inMillions = (n) => number(n / 1e6, n < 1e7 ? 2 : 1);
