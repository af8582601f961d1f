// All heads as a table that sorts by any column.
import { figure, percent, plainRank, range, whole } from "./numbers.js";
import { byId, labelled, make, refill } from "./dom.js";
import { viewOf } from "./scores.js";

const PAGE_ROWS = 25;

// Heads by a search for a layer ("15") or a head ("15-30", "15 30", "15,30"); all that are ranked for none.
export function headsMatching(view, wanted) {
  const all = view.values.map((_, index) => index).filter((index) => !view.file.ranking || view.values[index] > 0);
  if (!wanted) return all;
  const [layer, head] = wanted.split(/[-,\s]+/);
  return all.filter((i) => String(Math.floor(i / view.columns)) === layer && (!head || String(i % view.columns) === head));
}

// Sorted by a column's value; of equal ones the better rank comes first, whatever the direction.
export function sortedHeads(view, heads, value, direction) {
  const sign = direction === "ascending" ? 1 : -1;
  return [...heads].sort((a, b) => sign * (value(a) - value(b)) || view.ranks[a] - view.ranks[b]);
}

export function columnsOf(view) {
  const place = (index) => [Math.floor(index / view.columns), index % view.columns];
  const noun = view.noun === "head" ? "Head" : "KV head";
  const columns = [
    { name: "Rank", value: (i) => view.ranks[i], text: (i) => whole.format(view.ranks[i]), first: "ascending" },
    { name: "Layer", value: (i) => place(i)[0], text: (i) => String(place(i)[0]), first: "ascending" },
    { name: noun, value: (i) => place(i)[1], text: (i) => String(place(i)[1]), first: "ascending" },
    { name: "Score", value: (i) => view.values[i], text: (i) => figure(view.values[i]), bar: true },
    { name: "Share", value: (i) => view.values[i], text: (i) => (view.total ? percent(Math.max(view.values[i], 0) / view.total, 2) : "–") },
  ];
  if (view.file.ranking) return columns.slice(0, 3);
  const sure = view.sure;
  if (sure) {
    columns.push(
      { name: "95 % interval", value: (i) => sure.high[i] - sure.low[i], text: (i) => (sure.low[i] === null ? "–" : range(sure.low[i], sure.high[i])), hint: "sorts by width" },
      { name: "Rank interval", value: (i) => sure.rankHigh[i] - sure.rankLow[i], text: (i) => (sure.low[i] === null ? "–" : `${plainRank(sure.rankLow[i])} to ${plainRank(sure.rankHigh[i])}`), hint: "sorts by width" },
      { name: "Trials above 0", value: (i) => sure.above[i], text: (i) => `${whole.format(sure.above[i])} of ${whole.format(view.file.trials)}` });
  }
  return columns;
}

export function tableSection(page) {
  const state = { column: 0, direction: "ascending", start: 0, wanted: "" };
  const [head, body] = [make("tr"), make("tbody")];
  const caption = make("caption");
  const table = make("table", { class: "heads", id: "heads-table" }, caption, make("thead", {}, head), body);
  const search = make("input", { type: "search", placeholder: "15 or 15-30", size: 12, oninput: () => { state.wanted = search.value.trim(); state.start = 0; fillRows(); } });
  const [before, after] = [make("button", { type: "button", onclick: () => turn(-PAGE_ROWS) }, "Previous"), make("button", { type: "button", onclick: () => turn(PAGE_ROWS) }, "Next")];
  const where = make("span", { class: "quiet", role: "status" });
  refill(byId("table-body"),
    make("div", { class: "controls" }, labelled("Only layer, or layer-head", search)),
    make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of heads" }, table),
    make("div", { class: "pager" }, before, after, where));
  let view = null;

  function turn(rows) {
    state.start += rows;
    fillRows();
  }

  function sortBy(column) {
    const columns = columnsOf(view);
    const opposite = { ascending: "descending", descending: "ascending" };
    state.direction = state.column === column ? opposite[state.direction] : columns[column].first ?? "descending";
    state.column = column;
    state.start = 0;
    fillHead();
    fillRows();
  }

  function fillHead() {
    refill(head, columnsOf(view).map((column, place) => make("th", { scope: "col", "aria-sort": state.column === place ? state.direction : "none" },
      make("button", { type: "button", title: column.hint, onclick: (event) => { sortBy(place); head.children[place].querySelector("button").focus({ preventScroll: Boolean(event) }); } }, column.name))));
  }

  function fillRows() {
    const columns = columnsOf(view);
    const heads = sortedHeads(view, headsMatching(view, state.wanted), columns[state.column].value, state.direction);
    const most = view.values.reduce((found, value) => Math.max(found, Math.abs(value)), 0) || 1;
    const shown = heads.slice(state.start, state.start + PAGE_ROWS);
    refill(body, shown.map((index) => rowOf(index, columns, most)));
    where.textContent = heads.length ? `${whole.format(state.start + 1)} to ${whole.format(state.start + shown.length)} of ${whole.format(heads.length)}` : "no such head";
    before.disabled = state.start === 0;
    after.disabled = state.start + PAGE_ROWS >= heads.length;
  }

  function rowOf(index, columns, most) {
    const row = make("tr", { onpointerenter: () => page.point(index), onpointerleave: () => page.point(null) });
    columns.forEach((column, place) => {
      const cell = make(place === 0 ? "th" : "td", place === 0 ? { scope: "row" } : {}, column.text(index));
      if (column.bar) {
        cell.classList.add("bar");
        cell.style.setProperty("--share", `${(100 * Math.max(view.values[index], 0)) / most}%`);
      }
      row.append(cell);
    });
    return row;
  }

  function rebuild() {
    const file = page.file();
    view = viewOf(file, false);
    Object.assign(state, { column: 0, direction: "ascending", start: 0 });
    const heads = file.ranking ? `The ranked ${view.noun}s` : `All ${whole.format(view.values.length)} ${view.noun}s`;
    caption.textContent = `${heads} of ${file.name}; a column's name sorts by it`;
    fillHead();
    fillRows();
  }

  return { rebuild, redraw: () => fillRows() };
}
