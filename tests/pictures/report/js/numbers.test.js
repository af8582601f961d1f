import assert from "node:assert/strict";
import test from "node:test";

import { compact, figure, mebibytes, percent, plainRank, range, signed, whole } from "../../../../headprobe/pictures/report/assets/numbers.js";

const figures = [
  [0, "0"], [0.5, "0.5000"], [-0.5, "-0.5000"], [1, "1.000"], [0.00012346, "0.0001235"], [12.3456, "12.35"],
  [12345.678, "12346"], [0.00001, "0.00001000"], [0.000012346, "0.00001235"],
];
for (const [value, text] of figures) {
  test(`${value} is written as ${text}`, () => assert.equal(figure(value), text));
}

test("numbers that round up to the next power of ten keep their digits", () => {
  assert.equal(figure(9.99996), "10.00");
  assert.equal(figure(0.99999), "1.000");
  assert.equal(figure(99999.6), "100000");
});

test("very small numbers are written with a power of ten and as many digits", () => {
  assert.equal(figure(1.23456e-7), "1.235e-7");
  assert.equal(figure(-1.23456e-7, 3), "-1.23e-7");
});

test("one digit is enough for the marks of an axis, however small they are", () => {
  assert.deepEqual([-9, -7, -3, 0, 2].map((power) => figure(10 ** power, 1)), ["1e-9", "1e-7", "0.001", "1", "100"]);
});

test("what is not known is a dash", () => {
  assert.deepEqual([figure(null), figure(undefined)], ["–", "–"]);
});

test("differences carry their sign", () => {
  assert.deepEqual([signed(0.25), signed(-0.25), signed(0)], ["+0.2500", "-0.2500", "0"]);
});

test("shares, ranges, ranks and whole numbers", () => {
  assert.equal(percent(0.12345), "12.3 %");
  assert.equal(percent(0.12345, 2), "12.35 %");
  assert.equal(range(0.25, 1), "0.2500 to 1.000");
  assert.deepEqual([plainRank(3), plainRank(3.5)], ["3", "3.5"]);
  assert.equal(whole.format(1234567), "1,234,567");
});

test("tokens in a cell of the map are at most four characters", () => {
  assert.deepEqual([7, 9999, 10000, 131072].map(compact), ["7", "9999", "10k", "131k"]);
});

test("memory is in MiB below one GiB and in GiB from there", () => {
  assert.deepEqual([2 ** 20, 2 ** 30 - 2 ** 20, 2 ** 30, 5 * 2 ** 29].map(mebibytes), ["1.00 MiB", "1023 MiB", "1.00 GiB", "2.50 GiB"]);
});
