// A chart on a canvas: curves over a shared axis, read by pointer or keys, zoomed by dragging, with a table beside it.
import { h } from "./dom.js";
import { t } from "./i18n.js";
import { firstAtLeast, logTicks, nearest, short, ticks, visible } from "./series.js";

const HEIGHT = 220; // CSS pixels
const MARGIN = { left: 56, right: 12, top: 10, bottom: 24 };
const ROWS = 100; // of the table
const NARROW = 6; // pixels: a shorter drag is a click

export class Chart {
  // `view` is shared by the charts of a page, {from, to: the part shown, null for all; last: where the longest run ends;
  // log}. `onZoom(from, to)` is called with what the user wants to see, both null for all.
  constructor(key, { view, onZoom }) {
    Object.assign(this, { key, view, onZoom, curves: [], cursor: null, drag: null });
    this.title = h("h2");
    this.canvas = h("canvas", { tabindex: "0", role: "img" });
    this.readout = h("div", { class: "readout" });
    this.table = h("details", { class: "table", ontoggle: () => this.fillTable() }, h("summary"));
    this.element = h("article", { class: "chart", "data-key": key }, this.title, this.canvas, this.readout, this.table);
    this.listen();
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(this.canvas);
  }

  get isVisible() {
    return this.canvas.clientWidth > 0;
  }

  // curves: {name, color, dash, xs, ys, smooth (or null), best: index or -1}
  show(curves, title, unit) {
    Object.assign(this, { curves, name: title, unit });
    this.title.textContent = title;
    this.table.querySelector("summary").textContent = t("table");
    const summaries = curves.map((curve) => this.summary(curve, curve.xs.length - 1));
    this.canvas.setAttribute("aria-label", [title, ...summaries, t("chartHelp")].join(". "));
    if (this.table.open) this.fillTable();
    this.draw();
  }

  summary(curve, index) {
    if (index < 0) return curve.name;
    const { shown } = this.valueAt(curve, index);
    return t("summary", { name: curve.name, value: shown, x: short(curve.xs[index]) });
  }

  valueAt(curve, index) {
    const value = (curve.smooth ?? curve.ys)[index];
    return { value, shown: value === null ? "–" : short(value) };
  }

  // The part of the axis that is shown.
  range() {
    const from = this.view.from ?? 0;
    const to = this.view.to ?? this.view.last;
    return to > from ? [from, to] : [from - 1, from + 1];
  }

  heights(from, to) {
    let [low, high] = [Infinity, -Infinity];
    for (const { xs, ys, smooth } of this.curves) {
      // The raw values around a smooth curve may leave the picture: one wild step would flatten all others.
      const values = smooth ?? ys;
      for (let i = firstAtLeast(xs, from); i < xs.length && xs[i] <= to; i += 1) {
        const value = values[i];
        if (value === null || (this.view.log && value <= 0)) continue;
        low = Math.min(low, value);
        high = Math.max(high, value);
      }
    }
    if (low > high) return [this.view.log ? 0.1 : 0, 1];
    const isFlat = high - low <= 1e-6 * Math.abs(high); // rounding is no curve
    if (this.view.log) return isFlat ? [low / 2, high * 2] : [low / (high / low) ** 0.05, high * (high / low) ** 0.05];
    const margin = (isFlat ? Math.abs(high) || 1 : high - low) * 0.06;
    return [low - margin, high + margin];
  }

  draw() {
    const { canvas } = this;
    const width = canvas.clientWidth;
    if (!width) return;
    const ratio = devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(HEIGHT * ratio);
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const style = getComputedStyle(canvas);
    const colour = (name) => style.getPropertyValue(name).trim();
    const [from, to] = (this.shown = this.range());
    const [low, high] = this.heights(from, to);
    const isLog = this.view.log;
    const scale = isLog ? Math.log : (value) => value;
    const inner = { width: width - MARGIN.left - MARGIN.right, height: HEIGHT - MARGIN.top - MARGIN.bottom };
    this.inner = inner;
    const x = (value) => MARGIN.left + ((value - from) / (to - from)) * inner.width;
    const y = (value) => MARGIN.top + ((scale(high) - scale(value)) / (scale(high) - scale(low))) * inner.height;

    pen.font = `12px ${style.fontFamily}`;
    pen.fillStyle = colour("--muted");
    pen.strokeStyle = colour("--border");
    pen.lineWidth = 1;
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    for (const value of isLog ? logTicks(low, high, 6) : ticks(low, high, 5)) {
      line(pen, MARGIN.left, y(value), width - MARGIN.right, y(value));
      pen.fillText(short(value), MARGIN.left - 6, y(value));
    }
    pen.textBaseline = "top";
    pen.textAlign = "center";
    for (const value of ticks(from, to, Math.max(2, Math.floor(inner.width / 90)))) {
      const label = short(value);
      const half = pen.measureText(label).width / 2;
      pen.fillText(label, Math.min(x(value), width - half - 1), HEIGHT - MARGIN.bottom + 7);
    }

    pen.save();
    pen.beginPath();
    pen.rect(MARGIN.left, 0, inner.width + MARGIN.right, HEIGHT - MARGIN.bottom + 1);
    pen.clip();
    for (const curve of this.curves) {
      pen.strokeStyle = pen.fillStyle = colour(curve.color);
      pen.setLineDash(curve.dash);
      const stroke = (values, opacity, lineWidth) => {
        pen.globalAlpha = opacity;
        pen.lineWidth = lineWidth;
        const points = visible(curve.xs, values, from, to, Math.round(inner.width));
        const there = points.filter((i) => values[i] !== null && !(isLog && values[i] <= 0));
        pen.beginPath();
        let isOpen = false; // a value that is missing interrupts the curve
        for (const i of points) {
          const isThere = values[i] !== null && !(isLog && values[i] <= 0);
          if (isThere && isOpen) pen.lineTo(x(curve.xs[i]), y(values[i]));
          else if (isThere) pen.moveTo(x(curve.xs[i]), y(values[i]));
          isOpen = isThere;
        }
        pen.stroke();
        if (there.length <= inner.width / 40) for (const i of there) dot(pen, x(curve.xs[i]), y(values[i]), lineWidth + 1);
      };
      if (curve.smooth) stroke(curve.ys, 0.3, 1);
      stroke(curve.smooth ?? curve.ys, 1, 2);
      pen.globalAlpha = 1;
      pen.setLineDash([]);
      if (curve.best >= 0 && curve.ys[curve.best] !== null) {
        pen.lineWidth = 2;
        pen.beginPath();
        pen.arc(x(curve.xs[curve.best]), y(curve.ys[curve.best]), 6, 0, 2 * Math.PI);
        pen.stroke();
      }
    }
    if (this.drag) {
      pen.fillStyle = colour("--accent");
      pen.globalAlpha = 0.15;
      const [a, b] = [this.drag.from, this.drag.to].map(x);
      pen.fillRect(Math.min(a, b), MARGIN.top, Math.abs(b - a), inner.height);
      pen.globalAlpha = 1;
    }
    if (this.cursor !== null) {
      pen.strokeStyle = colour("--border-strong");
      pen.lineWidth = 1;
      line(pen, x(this.cursor), MARGIN.top, x(this.cursor), HEIGHT - MARGIN.bottom);
    }
    pen.restore();
    this.showValues();
  }

  // What stands below the chart: the values at the cursor, or the latest.
  showValues() {
    const rows = this.curves.map((curve) => {
      const index = this.cursor === null ? curve.xs.length - 1 : nearest(curve.xs, this.cursor);
      const mark = h("span", { class: "swatch" });
      mark.style.background = `var(${curve.color})`;
      const best = curve.best >= 0 && h("span", { class: "quiet" }, t("bestAt", { step: short(curve.steps[curve.best]) }));
      return h("span", { class: "value" }, mark, this.summary(curve, index), best);
    });
    this.readout.replaceChildren(...rows);
  }

  fillTable() {
    if (!this.table.open) return;
    this.table.querySelector(".scroll")?.remove();
    const rows = this.curves.flatMap((curve) => {
      const every = Math.max(1, Math.ceil(curve.xs.length / ROWS));
      const indices = curve.xs.map((_, i) => i).filter((i) => i % every === 0 || i === curve.xs.length - 1);
      return indices.map((i) => h("tr", {}, h("td", {}, curve.name), h("td", {}, short(curve.xs[i])),
        h("td", {}, curve.ys[i] === null ? "–" : String(Number(curve.ys[i].toPrecision(6))))));
    });
    const head = h("tr", {}, ...[t("runs"), this.unit, this.name].map((text) => h("th", { scope: "col" }, text)));
    this.table.append(h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": this.name },
      h("table", {}, h("thead", {}, head), h("tbody", {}, rows))));
  }

  listen() {
    const { canvas } = this;
    const at = (event) => {
      const [from, to] = this.shown;
      const share = (event.clientX - canvas.getBoundingClientRect().left - MARGIN.left) / this.inner.width;
      return from + Math.min(1, Math.max(0, share)) * (to - from);
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || event.pointerType === "touch" || !this.curves.length) return;
      canvas.setPointerCapture(event.pointerId);
      this.drag = { from: at(event), to: at(event), pixel: event.clientX };
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.curves.length) return;
      this.cursor = at(event);
      if (this.drag) this.drag.to = this.cursor;
      this.draw();
    });
    canvas.addEventListener("pointerup", (event) => {
      const { drag } = this;
      this.drag = null;
      if (drag && Math.abs(event.clientX - drag.pixel) >= NARROW) {
        this.onZoom(Math.min(drag.from, drag.to), Math.max(drag.from, drag.to));
      } else this.draw();
    });
    for (const name of ["pointerleave", "blur"]) {
      canvas.addEventListener(name, () => {
        if (this.drag) return;
        this.cursor = null;
        this.draw();
      });
    }
    canvas.addEventListener("dblclick", () => this.onZoom(null, null));
    canvas.addEventListener("keydown", (event) => this.pressed(event));
  }

  pressed(event) {
    const longest = this.curves.reduce((a, b) => (b.xs.length > a.xs.length ? b : a), { xs: [] }).xs;
    if (!longest.length || event.ctrlKey || event.metaKey || event.altKey) return;
    const [from, to] = this.shown;
    const now = this.cursor === null ? longest.length - 1 : nearest(longest, this.cursor);
    const last = longest.length - 1;
    const stride = event.shiftKey ? Math.max(1, Math.round(longest.length / 20)) : 1;
    const target = { ArrowLeft: now - stride, ArrowRight: now + stride, Home: 0, End: last }[event.key];
    if (target !== undefined) {
      this.cursor = longest[Math.min(last, Math.max(0, target))];
      this.draw();
      document.getElementById("announcer").textContent = this.readout.innerText;
    } else if (event.key === "+" || event.key === "=" || event.key === "-") {
      const middle = this.cursor ?? (from + to) / 2;
      const half = ((to - from) / 2) * (event.key === "-" ? 2 : 0.5);
      this.onZoom(Math.max(0, middle - half), Math.min(this.view.last, middle + half));
    } else if (event.key === "Escape") {
      this.onZoom(null, null);
    } else return;
    event.preventDefault();
  }
}

function line(pen, x1, y1, x2, y2) {
  pen.beginPath();
  pen.moveTo(x1, Math.round(y1) + 0.5);
  pen.lineTo(x2, Math.round(y2) + 0.5);
  pen.stroke();
}

function dot(pen, x, y, radius) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fill();
}
