// The spread of the scores, and where in depth they lie.
import { figure, percent, whole } from "./numbers.js";
import { byId, draw, make, refill } from "./dom.js";
import { viewOf } from "./scores.js";

const CHART = { width: 520, height: 300, left: 60, right: 14, top: 16, bottom: 34 };

export function chartFrame(label, ...parts) {
  return draw("svg", { viewBox: `0 0 ${CHART.width} ${CHART.height}`, class: "chart", role: "img", "aria-label": label }, ...parts);
}

// The first value of `values` in [0, 1] at the left or bottom of the chart.
export const chartX = (share) => CHART.left + share * (CHART.width - CHART.left - CHART.right);
export const chartY = (share) => CHART.height - CHART.bottom - share * (CHART.height - CHART.top - CHART.bottom);

export function gridLine(axis, share, text) {
  const [x, y] = [chartX(share), chartY(share)];
  return axis === "x"
    ? [draw("line", { class: "rule", x1: x, x2: x, y1: chartY(0), y2: chartY(1) }), draw("text", { class: "tick", x, y: chartY(0) + 18 }, text)]
    : [draw("line", { class: "rule", x1: chartX(0), x2: chartX(1), y1: y, y2: y }), draw("text", { class: "tick tick-row", x: chartX(0) - 8, y: y + 4 }, text)];
}

// Both axes of `count` scores whose `positive` ones are given, best first: x of a rank and y of a score, from 0 to 1;
// `bottom` and `top` are powers of ten, `bottom` whole and at most five below the best score.
export function logAxes(positive, count) {
  const bottom = Math.floor(Math.log10(Math.max(positive[positive.length - 1], positive[0] * 1e-4)) - 0.02);
  const top = Math.log10(positive[0] * 1.5);
  return {
    bottom, top,
    x: (rank) => Math.log(rank / 0.9) / Math.log((count * 1.08) / 0.9),
    y: (value) => Math.max(0, (Math.log10(value) - bottom) / (top - bottom)),
  };
}

function distributionChart(file) {
  const sorted = [...file.mean].sort((a, b) => b - a);
  const positive = sorted.filter((value) => value > 0);
  if (!positive.length) return make("p", {}, "No head scores above 0.");
  const { bottom, top, x, y } = logAxes(positive, sorted.length);
  const rules = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000].filter((rank) => rank <= sorted.length).map((rank) => gridLine("x", x(rank), whole.format(rank)));
  for (let power = bottom; power <= top; power += 1) rules.push(gridLine("y", (power - bottom) / (top - bottom), figure(10 ** power, 1)));
  const points = positive.map((value, i) => `${chartX(x(i + 1)).toFixed(1)},${chartY(y(value)).toFixed(1)}`);
  const half = file.half;
  const area = half ? [`${chartX(x(1))},${chartY(0)}`, ...points.slice(0, half), `${chartX(x(half))},${chartY(0)}`] : [];
  const note = `${whole.format(half)} of ${whole.format(sorted.length)} heads hold half of the total score; ${percent(file.zeroFraction)} score 0.`;
  const picture = chartFrame(`Scores from best to worst. ${note}`, ...rules.flat(),
    draw("polygon", { class: "half-area", points: area.join(" ") }),
    draw("line", { class: "half-line", x1: chartX(x(half || 1)), x2: chartX(x(half || 1)), y1: chartY(0), y2: chartY(1) }),
    draw("polyline", { class: "curve", points: points.join(" ") }));
  return make("figure", {}, make("figcaption", {}, make("strong", {}, "From best to worst."), ` ${note}`), picture,
    make("p", { class: "axis-name" }, "score (down) by rank (across), both logarithmic"));
}

// Of each layer: its best head, that head's score, and the layer's share of all score.
export function layerRows(view) {
  return Array.from({ length: view.layers }, (_, layer) => {
    const own = view.values.slice(layer * view.columns, (layer + 1) * view.columns);
    const best = own.reduce((found, value, head) => (value > own[found] ? head : found), 0);
    return { layer, best, score: own[best], share: view.total ? own.reduce((sum, value) => sum + Math.max(value, 0), 0) / view.total : 0 };
  });
}

function layersChart(file) {
  const view = viewOf(file, false);
  const rows = layerRows(view);
  const most = Math.max(...rows.map((row) => row.share)) || 1;
  const table = make("table", { class: "layers" }, make("caption", { class: "hidden" }, "Share of the total score and best head of each layer"),
    make("thead", {}, make("tr", {}, ["Layer", "Share of the total score", "Best head"].map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, rows.map((row) => {
      const bar = make("td", { class: "bar" }, percent(row.share));
      bar.style.setProperty("--share", `${(100 * row.share) / most}%`);
      return make("tr", {}, make("th", { scope: "row" }, String(row.layer)), bar, make("td", {}, row.score > 0 ? `${row.layer}-${row.best}  ${figure(row.score, 3)}` : "–"));
    })));
  const top = [...rows].sort((a, b) => b.share - a.share)[0];
  return make("figure", {}, make("figcaption", {}, make("strong", {}, "Layer by layer."), ` Layer ${top.layer} holds the most: ${percent(top.share)}.`),
    make("div", { class: view.layers > 16 ? "scroll tall" : "scroll", tabindex: 0, role: "region", "aria-label": "Layer profile" }, table));
}

export function shapeSection(page) {
  const rebuild = () => {
    const file = page.file();
    const told = file.ranking
      ? make("p", { class: "note" }, "The file is a ranking. It has no scores, so their spread is unknown.")
      : make("div", { class: "halves" }, distributionChart(file), layersChart(file));
    refill(byId("shape-body"), told);
  };
  return { rebuild, redraw: rebuild };
}
