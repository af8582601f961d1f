// A file's heads, as everything on the page reads them.
import { figure, percent, plainRank, range, whole } from "./numbers.js";

// Ranks from 1, best first; ties are ordered by layer, then head.
export function rankOrder(values) {
  return values.map((_, i) => i).sort((a, b) => values[b] - values[a] || a - b);
}

export function ranksOf(values) {
  const ranks = new Array(values.length);
  rankOrder(values).forEach((index, place) => {
    ranks[index] = place + 1;
  });
  return ranks;
}

// Query heads [layers * heads] to KV heads [layers * groups], by mean or max over the heads that share one.
export function joinHeads(values, layers, groups, how) {
  const size = values.length / layers / groups;
  return Array.from({ length: layers * groups }, (_, group) => {
    const own = values.slice(group * size, (group + 1) * size);
    return how === "max" ? Math.max(...own) : own.reduce((sum, value) => sum + value, 0) / size;
  });
}

// What is shown of a file: its own heads, or KV heads made from them.
export function viewOf(file, joined) {
  const joins = joined && file.heads === "query" && file.groups;
  const values = joins ? joinHeads(file.mean, file.layers, file.groups, "mean") : file.mean;
  const columns = values.length / file.layers;
  const total = values.reduce((sum, value) => sum + Math.max(value, 0), 0);
  return {
    file, values, columns, total,
    layers: file.layers,
    noun: joins || file.heads === "kv" ? "KV head" : "head",
    group: joins || !file.groups || file.heads === "kv" ? 1 : file.width / file.groups,
    ranks: ranksOf(values),
    sure: joins ? null : file.intervals,
  };
}

// In a ranking without scores: the place of a head, best first.
export function placeOf(view, index) {
  const ranked = view.values.filter((value) => value > 0).length;
  return view.values[index] > 0 ? `${view.ranks[index]} of ${ranked}` : "not ranked";
}

// All that is known of one head, as [name, value] in the order in which it is shown.
export function factsOf(view, index) {
  const { file, values, ranks, sure } = view;
  if (file.ranking) return [["Place", placeOf(view, index)]];
  const facts = [["Score", figure(values[index])], ["Rank", `${whole.format(ranks[index])} of ${whole.format(values.length)}`]];
  if (sure && sure.low[index] !== null) {
    facts.push(["95 % interval", range(sure.low[index], sure.high[index])]);
    facts.push(["Rank interval", `${plainRank(sure.rankLow[index])} to ${plainRank(sure.rankHigh[index])}`]);
  }
  facts.push(["Share of the total score", view.total ? percent(Math.max(values[index], 0) / view.total, 2) : "–"]);
  if (file.trials !== null) {
    const above = sure ? `above 0 in ${whole.format(sure.above[index])} of ${whole.format(file.trials)}` : whole.format(file.trials);
    facts.push(["Trials", above]);
  }
  return facts;
}
