// What the pictures are reckoned from: colours, places on axes, moves on the map, rows of the table.
import assert from "node:assert/strict";
import test from "node:test";

import { divisorsOf, outcome, promptFor } from "../../../../headprobe/pictures/report/assets/budgets.js";
import { chartX, chartY, layerRows, logAxes } from "../../../../headprobe/pictures/report/assets/charts.js";
import { along, css, inkOn } from "../../../../headprobe/pictures/report/assets/colours.js";
import { shareOfRank, shareOfScore } from "../../../../headprobe/pictures/report/assets/comparison.js";
import { readData } from "../../../../headprobe/pictures/report/assets/data.js";
import { labelStep, movedBy } from "../../../../headprobe/pictures/report/assets/grid.js";
import { differences, othersLike, scaleName, shareUnit, tellOf } from "../../../../headprobe/pictures/report/assets/heads.js";
import { columnsOf, headsMatching, sortedHeads } from "../../../../headprobe/pictures/report/assets/table.js";
import { INTERVALS, fileOf, toyView } from "./toys.js";

test("a colour lies between its neighbours on the ramp, and at the ends beyond them", () => {
  const ramp = [[0, 0, 0], [100, 50, 10], [200, 50, 30]];
  assert.deepEqual([-1, 0, 0.25, 0.5, 0.75, 1, 2].map((fraction) => along(ramp, fraction)), [
    [0, 0, 0], [0, 0, 0], [50, 25, 5], [100, 50, 10], [150, 50, 20], [200, 50, 30], [200, 50, 30],
  ]);
  assert.equal(css([1, 2, 3]), "rgb(1 2 3)");
});

test("letters are white on dark colours and dark on light ones", () => {
  assert.deepEqual([[0, 0, 0], [255, 0, 0], [0, 255, 0], [255, 255, 255]].map(inkOn), ["#fff", "#fff", "#1b1f23", "#1b1f23"]);
});

test("the data replaces what the page is about", () => {
  assert.deepEqual(readData('{"files":[1],"pairs":[]}').files, [1]);
  readData('{"files":[],"pairs":[]}');
});

test("the chart has its origin at the lower left", () => {
  assert.deepEqual([chartX(0), chartX(1), chartY(0), chartY(1)], [60, 506, 266, 16]);
});

test("the axes of scores from best to worst are logarithmic and reach over all of them", () => {
  const { bottom, top, x, y } = logAxes([1, 0.1, 0.02], 100);
  assert.equal(bottom, -2); // the power of ten below 0.02
  assert.ok(Math.abs(top - Math.log10(1.5)) < 1e-12);
  assert.equal(x(0.9), 0);
  assert.ok(x(1) > 0 && x(100) < 1 && x(10) > x(1));
  assert.equal(y(0.01), 0);
  assert.ok(Math.abs(y(1.5) - 1) < 1e-12);
});

test("scores far below the best lie on the axis", () => {
  const { bottom, y } = logAxes([1, 1e-12], 2);
  assert.equal(bottom, -5);
  assert.equal(y(1e-12), 0);
});

test("a layer has its best head and its share of what is above 0", () => {
  assert.deepEqual(layerRows(toyView({ mean: [0.25, -1, 0.25, 0.5] })), [
    { layer: 0, best: 0, score: 0.25, share: 0.25 }, { layer: 1, best: 1, score: 0.5, share: 0.75 },
  ]);
  assert.deepEqual(layerRows(toyView({ mean: [0, 0, 0, 0] })).map((row) => row.share), [0, 0]);
});

test("the best rank and the best score lie at 1, the last at 0", () => {
  assert.deepEqual([shareOfRank(1, 100), shareOfRank(10, 100), shareOfRank(100, 100), shareOfRank(1, 1)], [1, 0.5, 0, 1]);
  assert.deepEqual([shareOfScore(4, 4), shareOfScore(1, 4), shareOfScore(-3, 4)], [1, 0.25, 0]);
});

test("the arrow keys stop at the edges", () => {
  const grid = { rows: 2, columns: 3 }; // 0 1 2 / 3 4 5
  const moves = (key, toEnd = false) => [0, 4, 5].map((at) => movedBy(key, toEnd, at, grid));
  assert.deepEqual(moves("ArrowLeft"), [0, 3, 4]);
  assert.deepEqual(moves("ArrowRight"), [1, 5, 5]);
  assert.deepEqual(moves("ArrowUp"), [0, 1, 2]);
  assert.deepEqual(moves("ArrowDown"), [3, 4, 5]);
  assert.deepEqual(moves("Home"), [0, 3, 3]);
  assert.deepEqual(moves("End"), [2, 5, 5]);
  assert.deepEqual(moves("Home", true), [0, 0, 0]);
  assert.deepEqual(moves("End", true), [5, 5, 5]);
  assert.deepEqual(["Tab", "a", "toString"].map((key) => movedBy(key, false, 4, grid)), [null, null, null]);
});

test("the map has no more labels than there is room for", () => {
  assert.deepEqual([1, 16, 17, 32, 64, 65].map((count) => labelStep(count, 16)), [1, 1, 2, 2, 4, 8]);
});

test("the table finds a layer or one head, and only what a ranking ranks", () => {
  const view = toyView();
  assert.deepEqual(headsMatching(view, ""), [0, 1, 2, 3]);
  assert.deepEqual(headsMatching(view, "1"), [2, 3]);
  assert.deepEqual(["1-0", "1 0", "1,0"].map((wanted) => headsMatching(view, wanted)), [[2], [2], [2]]);
  assert.deepEqual(headsMatching(view, "7"), []);
  assert.deepEqual(headsMatching(toyView({ ranking: true }), ""), [0, 2, 3]);
});

test("of equal values the better rank comes first in either direction", () => {
  const view = toyView(); // 0.25, 0, 0.5, 0.25 rank 2, 4, 1, 3
  const score = columnsOf(view).find((column) => column.name === "Score").value;
  assert.deepEqual(sortedHeads(view, [0, 1, 2, 3], score, "descending"), [2, 0, 3, 1]);
  assert.deepEqual(sortedHeads(view, [0, 1, 2, 3], score, "ascending"), [1, 0, 3, 2]);
});

test("the table's columns are those that the file has", () => {
  const names = (changes) => columnsOf(toyView(changes)).map((column) => column.name);
  assert.deepEqual(names({ ranking: true }), ["Rank", "Layer", "Head"]);
  assert.deepEqual(names({ heads: "kv" }), ["Rank", "Layer", "KV head", "Score", "Share"]);
  assert.deepEqual(names({ intervals: INTERVALS }).slice(5), ["95 % interval", "Rank interval", "Trials above 0"]);
});

test("the table's cells", () => {
  const texts = (index) => columnsOf(toyView({ intervals: INTERVALS })).map((column) => column.text(index));
  assert.deepEqual(texts(2), ["1", "1", "0", "0.5000", "50.00 %", "0.2500 to 0.7500", "1 to 1", "3 of 3"]);
  assert.deepEqual(texts(3).slice(5), ["–", "–", "1 of 3"]);
});

test("scores are taken from those of files that have the same heads", () => {
  const file = fileOf();
  const files = [file, fileOf(), fileOf({ layers: 4 }), fileOf({ ranking: true }), fileOf({ heads: "kv" }), fileOf({ groups: 2 }), fileOf()];
  assert.deepEqual(othersLike(file, files), [1, 6]);
  assert.deepEqual(othersLike(files[3], files), []);
});

test("scores of one method are subtracted, others as percent of all score", () => {
  const [first, second] = [toyView({ mean: [1, 0, 2, 1] }), toyView({ mean: [1, -1, 0, 1] })];
  assert.deepEqual(differences(first, second, false), [0, 1, 2, 0]);
  assert.deepEqual(differences(first, second, true), [-25, 0, 50, -25]);
});

test("files share a unit where both state the same method", () => {
  assert.deepEqual([["r2", "r2"], ["r2", "mass"], [null, null], [null, "r2"]].map(
    ([first, second]) => shareUnit(fileOf({ methodName: first }), fileOf({ methodName: second }))), [true, false, false, false]);
});

test("the legend names what is shown, and its ends", () => {
  const [file, ranking] = [fileOf(), fileOf({ ranking: true })];
  assert.equal(scaleName(file, null, false, false), "mean score");
  assert.equal(scaleName(file, file, true, true), "difference in the shares of the total score, in percent, square-root colours");
  assert.equal(scaleName(file, file, false, false), "difference in the scores");
  assert.equal(scaleName(ranking, null, false, false), "place in the ranking");
  assert.deepEqual([tellOf(file, null)(0.5), tellOf(file, file)(0.5), tellOf(ranking, null)(1), tellOf(ranking, null)(0)], ["0.5000", "+0.5000", "first", "not ranked"]);
});

test("the prompt of the budgets is the longest that the probes reach", () => {
  assert.deepEqual([[100], [512, 1500], [4096], [10 ** 6]].map(promptFor), [512, 1024, 4096, 131072]);
});

test("the KV heads that a layer of query heads can have", () => {
  assert.deepEqual([divisorsOf(1), divisorsOf(8), divisorsOf(28)], [[1], [1, 2, 4, 8], [1, 2, 4, 7, 14, 28]]);
});

test("the outcome counts entries, shares and bytes", () => {
  const tokens = [100, 20, 30, 50];
  assert.equal(outcome({ headDim: null }, tokens, { prompt: 100 }),
    "200 entries in all: 50.0 % of a full cache. Heads keep 20 to 100 tokens, half of them at most 30. 1 head keeps the whole prompt.");
  // keys and values of 128 numbers of 2 bytes: 512 bytes an entry
  assert.match(outcome({ headDim: 128 }, [2048, 2048], { prompt: 4096 }), /^4,096 entries.*at most 2,048\. That is 2\.00 MiB in 16-bit numbers instead of 4\.00 MiB\.$/);
  assert.match(outcome({ headDim: null }, [9, 9], { prompt: 9 }), /2 heads keep the whole prompt\.$/);
});
