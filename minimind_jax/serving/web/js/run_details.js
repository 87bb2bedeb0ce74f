// What runs say beside their curves: samples by step, measures before and after, the recipe.
import { h } from "./dom.js";
import { number, t } from "./i18n.js";
import { short } from "./series.js";

export class SamplesView {
  constructor(root) {
    Object.assign(this, { root, at: null }); // at: the step that the user wants to see; null for the latest
    this.slider = h("input", { type: "range", min: "0", step: "1", id: "sample-step", oninput: () => this.moved() });
    this.value = h("output", { for: "sample-step" });
    this.label = h("span");
    this.list = h("div", { class: "sample-runs" });
    root.append(h("label", { class: "slider" }, this.label, this.slider, this.value), this.list);
  }

  show(runs) {
    this.runs = runs;
    this.label.textContent = t("sampleStep");
    this.steps = [...new Set(runs.flatMap(({ samples }) => samples.map(({ step }) => step)))].sort((a, b) => a - b);
    const last = this.steps.length - 1;
    const wanted = this.at === null ? -1 : this.steps.findLastIndex((step) => step <= this.at);
    this.slider.max = String(Math.max(0, last));
    this.slider.value = String(wanted < 0 ? last : wanted);
    this.update();
  }

  moved() {
    const at = Number(this.slider.value);
    this.at = at === this.steps.length - 1 ? null : this.steps[at];
    this.update();
  }

  update() {
    const step = this.steps[Number(this.slider.value)];
    if (step === undefined) return;
    this.value.textContent = number(step);
    this.slider.setAttribute("aria-valuetext", number(step));
    this.list.replaceChildren(...this.runs.map(({ about, samples }) => {
      const latest = samples.findLast((sample) => sample.step <= step)?.step;
      const shown = samples.filter((sample) => sample.step === latest);
      return h("article", { class: "card" }, h("h3", {}, about.id, latest !== undefined && latest !== step &&
        h("span", { class: "quiet" }, ` ${t("stepOnly", { step: number(latest) })}`)),
        h("dl", {}, shown.map(({ prompt, text }) => h("div", {}, h("dt", { dir: "auto" }, prompt), h("dd", { dir: "auto" }, text)))));
    }));
  }
}

// A table for each run that has a report.
export function showReports(root, runs) {
  root.replaceChildren(...runs.filter(({ report }) => report).map(({ about, report }) => {
    const rows = Object.entries(report.before).filter(([, value]) => typeof value === "number").map(([key, before]) => {
      const after = report.after[key];
      const isThere = typeof after === "number";
      return h("tr", {}, h("th", { scope: "row" }, key), h("td", {}, short(before)), h("td", {}, isThere ? short(after) : "–"),
        h("td", {}, isThere ? `${after > before ? "+" : ""}${short(after - before)}` : "–"));
    });
    const head = ["measure", "beforeTraining", "afterTraining", "change"].map((key) => h("th", { scope: "col" }, t(key)));
    const at = report.step === null ? "" : ` · ${t("stepOnly", { step: number(report.step) })}`;
    return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${t("report")}: ${about.id}` },
      h("table", {}, h("caption", {}, about.id + at), h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows)));
  }));
}

// Kept as they are while their texts are the same: what is folded out stays so.
export function showConfigs(root, runs) {
  const wanted = runs.map(({ about, config }) => [about.id, JSON.stringify(config, null, 2)]);
  const isSame = wanted.length === root.children.length && wanted.every(([id, text], i) =>
    root.children[i].firstChild.textContent === id && root.children[i].lastChild.textContent === text);
  if (isSame) return;
  root.replaceChildren(...wanted.map(([id, text]) =>
    h("details", {}, h("summary", {}, id), h("pre", { tabindex: "0", role: "region", "aria-label": `${t("recipe")}: ${id}` }, text))));
}
