import assert from "node:assert/strict";
import test from "node:test";

import { headScoreBudgets, shareOut, sumOf } from "../../../../headprobe/pictures/report/assets/allocation.js";

test("what is above the floor goes by score, the rest evenly", () => {
  // spare 8 - 2 = 6 for each of 2 heads; half of it (beta 2) is the pool of 6, shared 3 to 1: 4.5 and 1.5
  assert.deepEqual(headScoreBudgets([0.75, 0.25], 8, 2, 2, 100), [10, 6]); // 2 + 3 + 4.5 = 9.5, 6.5: the earlier head rounds up
});

test("heads without any score share evenly", () => {
  assert.deepEqual(headScoreBudgets([0, 0, 0, 0], 8, 2, 1.5, 100), [8, 8, 8, 8]);
});

test("a score below 0 counts as none", () => {
  assert.deepEqual(headScoreBudgets([1, -5], 10, 0, 2, 100), headScoreBudgets([1, 0], 10, 0, 2, 100));
  assert.deepEqual(headScoreBudgets([1, 0], 10, 0, 2, 100), [15, 5]);
});

test("a prompt that fits into the budget is kept whole", () => {
  assert.deepEqual(headScoreBudgets([0.9, 0.1], 64, 8, 1.2, 64), [64, 64]);
  assert.deepEqual(headScoreBudgets([0.9, 0.1], 64, 8, 1.2, 40), [40, 40]);
});

test("no head keeps more than the prompt; what it cannot take goes to the others", () => {
  assert.deepEqual(headScoreBudgets([1, 0, 0], 10, 0, 1.25, 12), [12, 9, 9]); // 26, 2, 2 of 30 without the cap
});

test("shares are rounded to the total, the largest remainder first", () => {
  assert.deepEqual(shareOut([1, 1, 1], 10, 100), [4, 3, 3]);
  assert.deepEqual(shareOut([1, 2, 3], 10, 100), [2, 3, 5]); // 1.67, 3.33, 5
  assert.deepEqual(shareOut([0, 0], 3, 2), [2, 1]);
  assert.deepEqual(shareOut([5, 1], 4, 2), [2, 2]);
});

test("the sum is met for any scores", () => {
  for (let heads = 1; heads <= 40; heads += 1) {
    const scores = Array.from({ length: heads }, (_, i) => Math.abs(Math.sin(heads * 7 + i)) ** 5);
    const tokens = headScoreBudgets(scores, 37, 5, 1.1, 90);
    assert.equal(sumOf(tokens), 37 * heads);
    assert.ok(tokens.every((count) => Number.isInteger(count) && count >= 5 && count <= 90));
  }
});
