// Files side by side: how far their rankings agree, head by head.
import { DATA } from "./data.js";
import { figure, plainRank, whole } from "./numbers.js";
import { byId, chooser, draw, labelled, make, refill } from "./dom.js";
import { rankOrder, ranksOf } from "./scores.js";
import { hideTip, showTip } from "./grid.js";
import { chartFrame, chartX, chartY, gridLine } from "./charts.js";

export function comparisonSection() {
  const host = byId("comparison-body");
  if (!host) return { rebuild() {}, redraw() {} };
  const state = { pair: Math.max(0, DATA.pairs.findIndex((pair) => !pair.refused)), ranks: true };
  const picture = make("div");
  const options = DATA.pairs.map((pair, index) => [String(index), `${DATA.files[pair.first].name}  |  ${DATA.files[pair.second].name}`]);

  function redraw() {
    const pair = DATA.pairs[state.pair];
    refill(picture, ...(pair.refused ? [make("p", { class: "note" }, pair.refused)] : [
      make("div", { class: "halves" }, scatter(pair, state.ranks), movedTable(pair)), ...pair.notes.map((note) => make("p", { class: "quiet" }, note)),
    ]));
  }

  const chosen = options.length > 1 ? labelled("Files", chooser(options, String(state.pair), (value) => { state.pair = Number(value); redraw(); })) : null;
  const axes = labelled("Axes", chooser([["ranks", "ranks"], ["scores", "scores"]], "ranks", (value) => { state.ranks = value === "ranks"; redraw(); }));
  refill(host, pairsTable(), make("div", { class: "controls" }, chosen, axes), picture);
  redraw();
  return { rebuild() {}, redraw };
}

function pairsTable() {
  const tops = [10, 20, 50, 100];
  const cells = (pair) => pair.refused ? [make("td", { colspan: 5 }, "not comparable")] : [
    make("td", {}, pair.spearman === null ? "–" : make("strong", {}, pair.spearman.toFixed(3)), pair.low === null ? "" : ` (${pair.low.toFixed(3)} to ${pair.high.toFixed(3)})`),
    ...tops.map((k) => {
      const found = pair.overlaps.find((overlap) => overlap[0] === k);
      return make("td", {}, found ? `${Number(found[1].toFixed(1))} of ${k}` : "–");
    })];
  return make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Agreement" }, make("table", { class: "pairs" },
    make("caption", {}, "Spearman's correlation over all heads with its 95 % interval, and how many of the best heads both files share"),
    make("thead", {}, make("tr", {}, ["First", "Second", "Spearman", ...tops.map((k) => `Top ${k}`)].map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, DATA.pairs.map((pair) => make("tr", {}, make("th", { scope: "row" }, DATA.files[pair.first].name), make("th", { scope: "row" }, DATA.files[pair.second].name), cells(pair))))));
}

function scatter(pair, byRank) {
  const names = [DATA.files[pair.first].name, DATA.files[pair.second].name];
  const sides = [pair.firstValues ?? DATA.files[pair.first].mean, pair.secondValues ?? DATA.files[pair.second].mean];
  const columns = sides[0].length / pair.layers;
  const shown = byRank ? sides.map(ranksOf) : sides;
  const most = shown.map((values) => values.reduce((found, value) => Math.max(found, value), 0) || 1);
  const share = (value, side) => (byRank ? shareOfRank(value, most[side]) : shareOfScore(value, most[side]));
  const best = new Set([...rankOrder(sides[0]).slice(0, 10), ...rankOrder(sides[1]).slice(0, 10)]);
  const dots = rankOrder(sides[0]).reverse().map((index) => {
    const name = `${Math.floor(index / columns)}-${index % columns}`;
    const [x, y] = [chartX(share(shown[0][index], 0)), chartY(share(shown[1][index], 1))];
    const dot = draw("circle", { class: best.has(index) ? "dot best" : "dot", cx: x.toFixed(1), cy: y.toFixed(1), r: best.has(index) ? 4 : 2.4 });
    const facts = () => names.map((file, side) => [file, byRank ? `rank ${shown[side][index]}, score ${figure(sides[side][index])}` : figure(sides[side][index])]);
    dot.addEventListener("pointermove", (event) => showTip(name, facts(), event.clientX, event.clientY));
    dot.addEventListener("pointerleave", hideTip);
    return dot;
  });
  const steps = byRank ? [1, 10, 100, 1000].map((rank) => [rank, whole.format(rank)]) : null;
  const rules = (axis, side) => (steps ?? [0, 0.5, 1].map((part) => [part * most[side], figure(part * most[side], 3)]))
    .filter(([value]) => value <= most[side]).map(([value, text]) => gridLine(axis, share(value, side), text)).flat();
  return make("figure", {}, make("figcaption", {}, make("strong", {}, byRank ? "Rank against rank." : "Score against score."), ` Best heads at the upper right; orange: the ten best of either file.`),
    chartFrame(`${names[0]} across, ${names[1]} upwards`, ...rules("x", 0), ...rules("y", 1), ...dots),
    make("p", { class: "axis-name" }, `${names[0]} (across), ${names[1]} (upwards)`));
}

// Where a value lies on its axis, 1 for the best: ranks from 1 by their logarithm, scores as they are.
export const shareOfRank = (rank, last) => 1 - Math.log(rank) / Math.log(Math.max(last, 2));
export const shareOfScore = (score, most) => Math.max(score, 0) / most;

function movedTable(pair) {
  const rows = pair.moved.map(([layer, head, a, b, rankA, rankB]) => make("tr", {}, make("th", { scope: "row" }, `${layer}-${head}`),
    make("td", {}, plainRank(rankA)), make("td", {}, plainRank(rankB)), make("td", {}, figure(a, 3)), make("td", {}, figure(b, 3))));
  return make("figure", {}, make("figcaption", {}, make("strong", {}, "Moved most."), " Among the 50 best of either file, by the ratio of ranks."),
    make("div", { class: "scroll" }, make("table", {}, make("caption", { class: "hidden" }, "Heads that moved most"), make("thead", {}, make("tr", {},
      [pair.heads === "kv" ? "KV head" : "Head", "Rank, first", "Rank, second", "Score, first", "Score, second"].map((name) => make("th", { scope: "col" }, name)))), make("tbody", {}, rows))));
}
