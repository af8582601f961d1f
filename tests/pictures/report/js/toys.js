// Files as the page knows them, small enough to reckon by hand.
import { viewOf } from "../../../../headprobe/pictures/report/assets/scores.js";

// Two layers of two query heads that share one KV head, three trials.
export function fileOf(changes = {}) {
  return {
    name: "a.json", methodName: "r2", ranking: false, heads: "query", layers: 2, width: 2, groups: 1, headDim: 16,
    mean: [0.25, 0, 0.5, 0.25], trials: 3, intervals: null, ...changes,
  };
}

export const INTERVALS = {
  low: [0.125, 0, 0.25, null], high: [0.375, 0, 0.75, null], rankLow: [2, 4, 1, 2], rankHigh: [3.5, 4, 1, 3],
  above: [2, 0, 3, 1],
};

export const toyView = (changes = {}, joined = false) => viewOf(fileOf(changes), joined);
