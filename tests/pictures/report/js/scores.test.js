import assert from "node:assert/strict";
import test from "node:test";

import { factsOf, joinHeads, placeOf, rankOrder, ranksOf, viewOf } from "../../../../headprobe/pictures/report/assets/scores.js";
import { INTERVALS, fileOf, toyView } from "./toys.js";

test("equal scores rank by layer, then head", () => {
  assert.deepEqual(rankOrder([0.25, 0.5, 0.25, -1]), [1, 0, 2, 3]);
  assert.deepEqual(ranksOf([0.25, 0.5, 0.25, -1]), [2, 1, 3, 4]);
  assert.deepEqual(ranksOf([]), []);
});

test("a KV head scores as the mean or the best of its own query heads", () => {
  const values = [1, 3, 5, 7, 0, 2, 4, 10]; // two layers, two KV heads of two query heads each
  assert.deepEqual(joinHeads(values, 2, 2, "mean"), [2, 6, 1, 7]);
  assert.deepEqual(joinHeads(values, 2, 2, "max"), [3, 7, 2, 10]);
  assert.deepEqual(joinHeads(values, 2, 4, "mean"), values);
});

test("query heads are shown as they are", () => {
  const view = toyView({ intervals: INTERVALS });
  assert.deepEqual(view.values, [0.25, 0, 0.5, 0.25]);
  assert.deepEqual(view.ranks, [2, 4, 1, 3]);
  assert.deepEqual([view.columns, view.group, view.noun, view.total, view.sure], [2, 2, "head", 1, INTERVALS]);
});

test("joined heads are KV heads, of which no interval is known", () => {
  const view = toyView({ intervals: INTERVALS }, true);
  assert.deepEqual(view.values, [0.125, 0.375]);
  assert.deepEqual([view.columns, view.group, view.noun, view.sure], [1, 1, "KV head", null]);
});

test("nothing is joined where the KV heads are not stated, or the file holds KV heads already", () => {
  assert.deepEqual(toyView({ groups: null }, true).values, [0.25, 0, 0.5, 0.25]);
  const view = toyView({ heads: "kv" }, true);
  assert.deepEqual([view.values, view.noun, view.group], [[0.25, 0, 0.5, 0.25], "KV head", 1]);
});

test("scores below 0 take nothing from the sum", () => {
  assert.equal(toyView({ mean: [-1, 0.5, -2, 0.25] }).total, 0.75);
});

test("all that is known of a head, in one order", () => {
  assert.deepEqual(factsOf(toyView({ intervals: INTERVALS }), 0), [
    ["Score", "0.2500"], ["Rank", "2 of 4"], ["95 % interval", "0.1250 to 0.3750"], ["Rank interval", "2 to 3.5"],
    ["Share of the total score", "25.00 %"], ["Trials", "above 0 in 2 of 3"],
  ]);
});

test("what a file does not hold is left out, not made up", () => {
  assert.deepEqual(factsOf(toyView({ intervals: INTERVALS }), 3).map(([name]) => name), ["Score", "Rank", "Share of the total score", "Trials"]);
  assert.deepEqual(factsOf(toyView({ trials: null }), 2), [["Score", "0.5000"], ["Rank", "1 of 4"], ["Share of the total score", "50.00 %"]]);
  assert.deepEqual(factsOf(toyView({ mean: [0, 0, 0, 0] }), 1).at(-2), ["Share of the total score", "–"]);
});

test("a ranking has places and no scores", () => {
  const view = viewOf(fileOf({ ranking: true, mean: [0.5, 0, 1, 0] }), false);
  assert.deepEqual([0, 1, 2].map((index) => placeOf(view, index)), ["2 of 2", "not ranked", "1 of 2"]);
  assert.deepEqual(factsOf(view, 2), [["Place", "1 of 2"]]);
});
