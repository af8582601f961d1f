// Which probes the scores stand on, and what the model answered.
import { figure, whole } from "./numbers.js";
import { byId, make, refill } from "./dom.js";
import { css, inkOn, isDarkTheme, shade } from "./colours.js";

export function coverageSection(page) {
  const rebuild = () => {
    const file = page.file();
    if (!file.coverage) {
      const trials = file.trials === null ? "The file holds no trials." : `The file holds ${whole.format(file.trials)} trials, ${whole.format(file.distinct)} of them distinct, and does not state their lengths and depths.`;
      refill(byId("coverage-body"), make("p", { class: "note" }, trials));
      return;
    }
    refill(byId("coverage-body"), coverageTable(file.coverage), make("p", { class: "quiet" }, file.coverage.note), answers(file));
  };
  return { rebuild, redraw: rebuild };
}

function coverageTable(coverage) {
  const cells = new Map(coverage.cells.map(([length, depth, ...counts]) => [`${length} ${depth}`, counts]));
  const row = (length, at) => make("tr", {}, make("th", { scope: "row" }, whole.format(length)), coverage.depths.map((_, depth) => coverageCell(cells.get(`${at} ${depth}`))));
  return make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Coverage" },
    make("table", { class: "coverage" },
      make("caption", {}, "Trials passed, of those tried: tokens down, depth of the needle in percent across"),
      make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "tokens"), coverage.depths.map((depth) => make("th", { scope: "col" }, `${figure(depth, 3)} %`)))),
      make("tbody", {}, coverage.lengths.map(row))));
}

function coverageCell(counts) {
  if (!counts) return make("td", { class: "quiet" }, "–");
  const [passed, total, repeated] = counts;
  const cell = make("td", { class: repeated ? "repeated" : null }, `${passed}/${total}`,
    repeated ? make("span", { class: "hidden" }, `, ${repeated} repeat another`) : null);
  const colour = shade((passed / total) * (isDarkTheme() ? 0.6 : 0.82));
  cell.style.backgroundColor = css(colour);
  cell.style.color = inkOn(colour);
  return cell;
}

function answers(file) {
  const shown = file.answers;
  if (!shown || !shown.length) return null;
  const summary = `What the model answered (${shown.length < file.numAnswers ? `${shown.length} of ` : ""}${whole.format(file.numAnswers)} trials)`;
  const rows = shown.map(([needle, length, depth, passed, f1, response]) => make("tr", {},
    make("th", { scope: "row" }, needle), make("td", {}, whole.format(length)), make("td", {}, `${figure(depth, 3)} %`),
    make("td", {}, make("span", { class: passed ? "pill good" : "pill bad" }, passed ? "passed" : "failed")),
    make("td", {}, f1.toFixed(2)), make("td", { class: "answer" }, response)));
  return make("details", {}, make("summary", {}, summary),
    make("div", { class: "scroll tall", tabindex: 0, role: "region", "aria-label": "Answers" },
      make("table", { class: "answers" }, make("caption", { class: "hidden" }, summary),
        make("thead", {}, make("tr", {}, ["Needle", "Tokens", "Depth", "Result", "F1", "Answer"].map((name) => make("th", { scope: "col" }, name)))),
        make("tbody", {}, rows))));
}
