// The page of training runs: what is selected, what is asked for again, and what is shown of it.
import { ApiError, apiKey, getPage, setApiKey } from "./api.js";
import { themeButton } from "./appearance.js";
import { Chart } from "./chart.js";
import { Connection } from "./connection.js";
import { askKey, banner } from "./dialogs.js";
import { h } from "./dom.js";
import { language, number, setLanguage, t, translate } from "./i18n.js";
import { lastOf, measures, points, RunData } from "./run_data.js";
import { showConfigs, showReports, SamplesView } from "./run_details.js";
import "./runs_texts.js";
import { short, smoothed } from "./series.js";
import { readObject, write } from "./local.js";

const MAIN = ["loss", "val_loss", "val_bpb", "lr", "grad_norm", "tokens_per_s", "mfu", "data_wait"];
const SMOOTHED = ["loss", "grad_norm", "tokens_per_s", "real_tokens_per_s", "mfu", "data_wait"];
const COLOURS = 6;
const EVERY = 3000; // milliseconds between questions while a run goes on
const SELDOM = 15000; // while none does

const by = (id) => document.getElementById(id);
const data = new RunData();
const settings = { axis: "step", smoothing: 0.6, log: false, ...readObject("runs") };
const view = { from: null, to: null, last: 1, log: settings.log === true };
const charts = new Map();
const samples = new SamplesView(by("samples-body"));
let selected = location.hash.slice(1).split("&").filter(Boolean).map(decode);
let timer = 0;
let isAsking = false;
let asksAgain = false;

const connection = new Connection({
  onGone: (left) => {
    const action = { label: t("tryNow"), run: () => connection.tryNow() };
    banner("gone", t("serverGone"), { isError: true, detail: t("tryingAgain", { n: left }), action });
  },
  onBack: () => {
    banner("gone", null);
    ask();
  },
});
const showTheme = themeButton(by("theme"));

async function ask() {
  if (isAsking) {
    asksAgain = true;
    return;
  }
  isAsking = true;
  clearTimeout(timer);
  try {
    do {
      asksAgain = false;
      await data.refresh(selected);
      if (!selected.length && data.runs.length) {
        selected = [data.runs[0].id];
        asksAgain = true;
      }
    } while (asksAgain);
    banner("error", null);
    showAll();
  } catch (error) {
    await failed(error);
  } finally {
    isAsking = false;
  }
  if (!connection.isGone && document.visibilityState === "visible") {
    timer = setTimeout(ask, data.runs.some(({ live }) => live) ? EVERY : SELDOM);
  }
}

async function failed(error) {
  if (!(error instanceof ApiError)) throw error;
  if (error.status === 401) {
    setApiKey(await askKey(apiKey() !== ""));
    setTimeout(start); // once this question has ended
  } else if (error.code === "gone") connection.lost();
  else banner("error", t("serverError", { text: error.message }), { isError: true });
}

function select(id, isOn) {
  selected = isOn ? [...selected, id] : selected.filter((other) => other !== id);
  history.replaceState(null, "", `#${selected.map(encodeURIComponent).join("&")}`);
  showAll();
  ask();
}

function showAll() {
  showList();
  const runs = selected.map((id) => data.loaded.get(id)).filter(Boolean);
  by("nothing").hidden = runs.length > 0 || !data.runs.length;
  by("shown").hidden = runs.length === 0;
  showCharts();
  by("report").hidden = !runs.some(({ report }) => report);
  showReports(by("reports"), runs);
  by("samples").hidden = !runs.some((run) => run.samples.length);
  samples.show(runs.filter((run) => run.samples.length));
  showConfigs(by("configs"), runs);
  const told = runs.flatMap(({ about, problem, thinned }) => [
    problem && t("runProblem", { name: about.id, text: problem }),
    thinned && t("thinned", { name: about.id, kept: number(thinned.kept), of: number(thinned.of) }),
  ]).filter(Boolean);
  banner("problem", told.length ? told.join(" ") : null);
}

function showList() {
  by("no-runs").hidden = data.runs.length > 0;
  const focused = document.activeElement?.dataset.id;
  by("runs").replaceChildren(...data.runs.map((run) => {
    const input = h("input", { type: "checkbox", "data-id": run.id, checked: selected.includes(run.id) });
    input.addEventListener("change", () => select(run.id, input.checked));
    const mark = h("span", { class: "swatch" });
    if (selected.includes(run.id)) mark.style.background = `var(${colourOf(run.id).color})`;
    const { step, total_steps: total } = run;
    const progress = total ? t("stepOf", { step: number(step), total: number(total) }) : t("stepOnly", { step: number(step) });
    const about = [run.stage, run.parameters && t("parameters", { n: short(run.parameters) }), progress].filter(Boolean);
    return h("li", {}, h("label", {}, input, mark, h("span", { class: "run" },
      h("span", { class: "name" }, run.id, run.live && h("span", { class: "live" }, t("live"))),
      h("span", { class: "quiet" }, about.join(" · ")))));
  }));
  if (focused !== undefined) [...by("runs").querySelectorAll("input")].find((i) => i.dataset.id === focused)?.focus();
}

function colourOf(id) {
  const place = selected.indexOf(id);
  return { color: `--series-${(place % COLOURS) + 1}`, dash: place < COLOURS ? [] : [6, 3] };
}

function showCharts() {
  const runs = selected.filter((id) => data.loaded.has(id)).map((id) => [id, data.loaded.get(id)]);
  const keys = new Set(runs.flatMap(([, run]) => [...measures(run.metrics)]));
  const others = [...keys].filter((key) => !MAIN.includes(key)).sort();
  place(by("charts"), MAIN.filter((key) => keys.has(key)));
  place(by("more-charts"), others);
  by("more").hidden = others.length === 0;
  view.last = Math.max(1, ...runs.map(([, run]) => lastOf(run, settings.axis)));
  for (const key of keys) {
    const isOpen = MAIN.includes(key) || by("more").open;
    if (!isOpen) continue;
    const curves = runs.map(([id, run]) => curve(id, run, key)).filter(({ xs }) => xs.length);
    const title = MAIN.includes(key) ? t(`chart_${key}`) : key;
    charts.get(key).show(curves, title, t(settings.axis === "tokens" ? "tokensSeen" : "steps"));
  }
  by("reset").disabled = view.from === null;
}

function curve(id, run, key) {
  const all = points(run, key, settings.axis);
  const smooth = SMOOTHED.includes(key) && settings.smoothing > 0 ? smoothed(all.ys, settings.smoothing) : null;
  return { name: id, ...colourOf(id), ...all, smooth };
}

function place(parent, keys) {
  for (const key of keys) if (!charts.has(key)) charts.set(key, new Chart(key, { view, onZoom: zoom }));
  const wanted = keys.map((key) => charts.get(key).element);
  const isSame = wanted.length === parent.children.length && wanted.every((element, i) => element === parent.children[i]);
  if (!isSame) parent.replaceChildren(...wanted);
}

function zoom(from, to) {
  Object.assign(view, { from, to });
  showCharts();
}

function changed() {
  settings.axis = by("axis").value;
  settings.smoothing = Number(by("smoothing").value);
  settings.log = view.log = by("log").checked;
  write("runs", JSON.stringify(settings));
  by("smoothing-value").textContent = number(settings.smoothing, 2);
  showCharts();
}

function showTexts() {
  translate(document.body);
  by("language").textContent = language() === "zh" ? "English" : "中文";
  showTheme();
  document.title = `${t("trainingRuns")} · minimind-jax`;
  by("smoothing-value").textContent = number(settings.smoothing, 2);
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

async function start() {
  await ask();
  try {
    by("chat-link").hidden = !(await getPage()).models.length;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error; // the next question finds out
  }
}

by("language").addEventListener("click", () => {
  setLanguage(language() === "zh" ? "en" : "zh");
  showTexts();
  showAll();
});
by("axis").addEventListener("change", () => {
  Object.assign(view, { from: null, to: null });
  changed();
});
by("smoothing").addEventListener("input", changed);
by("log").addEventListener("change", changed);
by("reset").addEventListener("click", () => zoom(null, null));
by("more").addEventListener("toggle", showCharts);
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") ask();
});
// Colours on canvases are read when they are drawn.
new MutationObserver(() => requestAnimationFrame(() => charts.forEach((chart) => chart.draw()))).observe(
  document.documentElement, { attributeFilter: ["data-theme"] });

by("axis").value = settings.axis === "tokens" ? "tokens" : "step";
settings.axis = by("axis").value;
by("smoothing").value = settings.smoothing = Math.min(0.98, Math.max(0, Number(settings.smoothing) || 0));
by("log").checked = view.log;
showTexts();
start();
