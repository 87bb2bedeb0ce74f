// What the server says of the runs, kept up to date: the list, and of those that are shown their lines.
import { getRun, getRuns } from "./api.js";

export class RunData {
  constructor() {
    this.runs = []; // as /api/runs lists them
    this.loaded = new Map(); // id -> {about, config, metrics, samples, report, thinned, problem, version}
  }

  async refresh(selected, signal) {
    this.runs = (await getRuns(signal)).runs;
    for (const id of [...this.loaded.keys()]) if (!selected.includes(id)) this.loaded.delete(id);
    const there = selected.filter((id) => this.runs.some((run) => run.id === id));
    await Promise.all(there.map((id) => this.load(id, signal)));
  }

  async load(id, signal) {
    const old = this.loaded.get(id);
    const about = this.runs.find((run) => run.id === id);
    const isNew = !old || old.about.step !== about.step || old.about.modified !== about.modified;
    if (!isNew) {
      old.about = about;
      return;
    }
    const after = old?.metrics.at(-1)?.step ?? -1;
    let answer = await getRun(id, after, signal);
    if (old && answer.version !== old.version) {
      answer = await getRun(id, -1, signal); // it went back to a checkpoint: what was read since may not hold
      this.loaded.set(id, answer);
    } else if (old) {
      Object.assign(old, { about: answer.about, config: answer.config, problem: answer.problem });
      old.metrics.push(...answer.metrics);
      old.samples.push(...answer.samples);
      if (!old.report || (answer.report && answer.report.step !== null)) old.report = answer.report;
    } else this.loaded.set(id, answer);
  }
}

// The numeric keys that occur in the lines.
export function measures(metrics) {
  const keys = new Set();
  for (const line of metrics) for (const key in line) if (typeof line[key] === "number") keys.add(key);
  keys.delete("step");
  return keys;
}

// One measure as a curve's points; lines without it are left out, null is a gap.
export function points(run, key, axis) {
  const lines = run.metrics.filter((line) => line[key] === null || typeof line[key] === "number");
  const perStep = axis === "tokens" ? tokensPerStep(run.config) : 1;
  const steps = lines.map(({ step }) => step);
  return {
    steps,
    xs: steps.map((step) => step * perStep),
    ys: lines.map((line) => line[key]),
    best: isBestOf(run, key) ? lines.findLastIndex(({ best }) => best === true) : -1,
  };
}

// Where the run's curves end.
export function lastOf({ config, metrics }, axis) {
  return (metrics.at(-1)?.step ?? 0) * (axis === "tokens" ? tokensPerStep(config) : 1);
}

// Of a batch as it goes to the device, filled rows or not.
function tokensPerStep({ batch_size: rows, data }) {
  return Number(rows) * Number(data?.max_seq_len) || 1;
}

function isBestOf({ config }, key) {
  return config.best ? config.best === key : key === "val_loss";
}
