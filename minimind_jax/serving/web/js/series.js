// The numbers of a curve: smoothing, scales, and what of 100,000 points a few hundred pixels can show.

// Exponential moving average without a pull to zero at the beginning; `weight` in [0, 1) is that of the past. Gaps (null)
// stay gaps.
export function smoothed(values, weight) {
  let mean = 0;
  let total = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return mean / total;
  });
}

// The index of the point nearest to `x`; `xs` ascend. -1 where there are none.
export function nearest(xs, x) {
  const at = firstAtLeast(xs, x);
  if (at === xs.length) return xs.length - 1;
  return at > 0 && x - xs[at - 1] < xs[at] - x ? at - 1 : at;
}

export function firstAtLeast(xs, x) {
  let [low, high] = [0, xs.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low;
}

// The indices of the points that `columns` columns of pixels between `from` and `to` can show: of each column the first,
// the last, the lowest and the highest, with one point more on either side.
export function visible(xs, ys, from, to, columns) {
  const begin = Math.max(0, firstAtLeast(xs, from) - 1);
  const end = Math.min(xs.length, firstAtLeast(xs, to) + 2);
  if (end - begin <= 4 * columns) return Array.from({ length: end - begin }, (_, i) => begin + i);
  const chosen = [];
  let column = [];
  let current = null;
  const close = () => {
    if (column.length) chosen.push(...new Set([...column].sort((a, b) => a - b)));
  };
  for (let i = begin; i < end; i += 1) {
    const at = Math.floor(((xs[i] - from) / (to - from)) * columns);
    if (at !== current) {
      close();
      current = at;
      column = [i, i, i, i]; // first, lowest, highest, last
    } else {
      if (ys[i] !== null && (ys[column[1]] === null || ys[i] < ys[column[1]])) column[1] = i;
      if (ys[i] !== null && (ys[column[2]] === null || ys[i] > ys[column[2]])) column[2] = i;
      column[3] = i;
    }
  }
  close();
  return chosen;
}

// At most about `count` round numbers in [low, high].
export function ticks(low, high, count) {
  if (!(high > low)) return [low];
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
}

export function logTicks(low, high, count) {
  const [from, to] = [Math.log10(low), Math.log10(high)];
  const steps = to - from < 1 ? [1, 2, 3, 5, 7] : to - from < 3 ? [1, 3] : [1];
  let found = [];
  for (let power = Math.floor(from); power <= to; power += 1) found.push(...steps.map((step) => step * 10 ** power));
  found = found.filter((value) => value >= low && value <= high);
  if (found.length < 2) return ticks(low, high, count).filter((value) => value > 0);
  return found.filter((_, i) => i % Math.ceil(found.length / count) === 0);
}

// A number in few characters: 0.0123, 1.234, 45.6, 12.3k, 4.5M.
export function short(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e");
  for (const [unit, name] of [[1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (size >= unit) return `${trimmed(value / (name === "k" ? 1e3 : unit))}${name}`;
  }
  return trimmed(value);
}

const trimmed = (value) => String(Number(value.toPrecision(4)));
