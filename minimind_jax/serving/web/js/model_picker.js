// Which model answers; with a comparison, which two.
import { h } from "./dom.js";
import { t } from "./i18n.js";

// The models that answer now: one, or two different ones.
export function chosenModels(page, settings) {
  const { models } = page;
  const first = models.find(({ name }) => name === settings.model) ?? models[0];
  if (!settings.compare || models.length < 2) return models.length ? [first] : [];
  const others = models.filter((model) => model !== first);
  return [first, others.find(({ name }) => name === settings.second) ?? others[0]];
}

export function showPicker(root, page, settings, changed) {
  const chosen = chosenModels(page, settings);
  if (page.models.length < 2) {
    root.replaceChildren(...chosen.map(({ name }) => h("span", { class: "model" }, name)));
    return;
  }
  const keys = ["model", "second"];
  root.replaceChildren(
    ...chosen.map((model, i) => {
      const options = page.models.filter((other) => i === 0 || other !== chosen[0]);
      const select = h(
        "select",
        { class: "field-select", "aria-label": t(i === 0 ? "model" : "secondModel") },
        options.map(({ name }) => h("option", { value: name, selected: name === model.name }, name)),
      );
      select.addEventListener("change", () => {
        settings[keys[i]] = select.value;
        changed();
      });
      return select;
    }),
  );
}
