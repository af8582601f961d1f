// The page: which file is shown, which head is kept, and the sections that show them.
import { DATA } from "./data.js";
import { byId, make, refill } from "./dom.js";
import { watchTheme } from "./colours.js";
import { headsSection } from "./heads.js";
import { tableSection } from "./table.js";
import { shapeSection } from "./charts.js";
import { coverageSection } from "./coverage.js";
import { comparisonSection } from "./comparison.js";
import { budgetsSection } from "./budgets.js";

function overviewSection(page) {
  const rebuild = () => {
    const file = page.file();
    byId("model").textContent = file.model ?? file.name;
    byId("method").textContent = file.method;
    const tiles = file.tiles.map(([value, name]) => make("li", {}, make("strong", {}, value), make("span", {}, name)));
    refill(byId("tiles"), tiles);
    byId("verdict").textContent = [file.verdict, file.note].filter(Boolean).join(" ");
    refill(byId("findings"), findings(file));
  };
  return { rebuild, redraw() {} };
}

function findings(file) {
  if (!file.findings.length) return [make("p", { class: "quiet" }, `All ${file.checksPassed} checks that apply to this file passed.`)];
  const rows = file.findings.map(([check, severity, detail, why]) => make("li", { class: `finding ${severity}` },
    make("p", {}, make("span", { class: "pill" }, severity), make("strong", {}, ` ${check} `), make("span", {}, detail)), make("p", { class: "quiet" }, why)));
  return [make("ul", { class: "plain" }, rows), make("p", { class: "quiet" }, `${file.checksPassed} other checks passed.`)];
}

function provenanceSection(page) {
  const rebuild = () => {
    refill(byId("provenance-body"), page.file().provenance.map(([title, entries]) => make("section", { class: "block" }, make("h3", {}, title),
      make("dl", {}, entries.map(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]).flat()))));
  };
  return { rebuild, redraw() {} };
}

function chooseFile(page) {
  const host = byId("files");
  if (DATA.files.length < 2) {
    host.hidden = true;
    return;
  }
  DATA.files.forEach((file, index) => {
    const input = make("input", { type: "radio", name: "file", value: index, onchange: () => page.open(index) });
    input.checked = index === 0;
    host.append(make("label", {}, input, make("span", {}, file.name)));
  });
}

export function start() {
  const sections = [];
  const page = {
    at: 0, picked: null,
    file: () => DATA.files[page.at],
    open(index) {
      Object.assign(page, { at: index, picked: null });
      sections.forEach((section) => section.rebuild());
    },
    pick(index) {
      page.picked = index;
      heads.refresh();
    },
    point: (index) => heads.point(index),
  };
  const heads = headsSection(page);
  sections.push(overviewSection(page), heads, tableSection(page), shapeSection(page), coverageSection(page), comparisonSection(page), budgetsSection(page), provenanceSection(page));
  watchTheme(() => sections.forEach((section) => section.redraw()));
  chooseFile(page);
  page.open(0);
  document.documentElement.dataset.ready = "true";
}
