// The map of heads with the card of the head under the pointer.
import { DATA } from "./data.js";
import { figure, signed } from "./numbers.js";
import { byId, chooser, labelled, make, refill } from "./dom.js";
import { factsOf, rankOrder, viewOf } from "./scores.js";
import { exploreGrid, legend } from "./grid.js";

export function headsSection(page) {
  const host = byId("heads-body");
  const map = make("div", { class: "grid-host" });
  const card = make("aside", { class: "card", "aria-label": "The selected head" });
  const key = make("div");
  const controls = make("div", { class: "controls" });
  refill(host, controls, make("div", { class: "split" }, make("div", { class: "grow" }, map, key), card));
  const state = { joined: false, root: false, against: "" };
  let shown = null;

  function redraw() {
    const view = viewOf(page.file(), state.joined);
    const other = state.against === "" ? null : viewOf(DATA.files[state.against], state.joined);
    const inShares = other !== null && !shareUnit(view.file, other.file);
    const values = other ? differences(view, other, inShares) : view.values;
    const reach = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1;
    const bend = (share) => (state.root ? Math.sign(share) * Math.sqrt(Math.abs(share)) : share);
    const best = rankOrder(other ? values.map(Math.abs) : values).slice(0, 10).filter((index) => (other ? values[index] !== 0 : values[index] > 0));
    const marks = new Map(best.map((index, place) => [index, String(place + 1)]));
    const title = (index) => `Layer ${Math.floor(index / view.columns)}, ${view.noun} ${index % view.columns}`;
    const facts = (index) => (other ? differenceFacts(view, other, values[index], index) : factsOf(view, index));
    const grid = {
      rows: view.layers, columns: view.columns, group: view.group, noun: view.noun, values, rings: true, kept: () => page.picked,
      start: best[0] ?? 0, label: other ? `Difference from ${DATA.files[state.against].name}` : "Scores of all heads",
      fraction: (value) => bend(value / reach), text: (index) => marks.get(index) ?? "", title, facts,
      onshow: (index, spoken) => {
        const told = index ?? page.picked ?? grid.start;
        const badge = told === page.picked ? "kept" : index !== null ? "" : other ? "furthest" : "best";
        showCard(card, title(told), facts(told), badge, "; a click or Enter keeps it here");
        if (spoken && index !== null) say(`${title(index)}: ${facts(index).map((fact) => fact.join(" ")).join(", ")}`);
      },
      onpick: (index) => page.pick(page.picked === index ? null : index),
    };
    shown = exploreGrid(map, grid);
    const [low, high] = other ? [-reach, reach] : extremes(values);
    refill(key, legend(Math.min(low, 0), Math.max(high, 0) || reach, bend, tellOf(page.file(), other), scaleName(page.file(), other, inShares, state.root)));
    shown.show(null, false);
  }

  function extremes(values) {
    return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
  }

  function rebuild() {
    const file = page.file();
    state.joined = state.joined && Boolean(file.groups) && file.heads === "query";
    state.against = "";
    const parts = [];
    if (file.groups && file.heads === "query" && file.groups < file.width) {
      parts.push(labelled("Show", chooser([["", "query heads"], ["kv", "KV heads (mean of their query heads)"]], state.joined ? "kv" : "", (value) => {
        state.joined = value === "kv";
        page.pick(null);
        redraw();
      })));
    }
    const others = othersLike(file, DATA.files);
    if (others.length) {
      parts.push(labelled("Minus", chooser([["", "nothing"], ...others.map((index) => [String(index), DATA.files[index].name])], "", (value) => {
        state.against = value;
        redraw();
      })));
    }
    const box = make("input", { type: "checkbox", onchange: () => { state.root = box.checked; redraw(); } });
    box.checked = state.root;
    parts.push(make("label", { class: "control check" }, box, make("span", {}, "Square-root colours, to see small scores")));
    refill(controls, parts);
    redraw();
  }

  const point = (index) => (state.joined ? null : shown.show(index, false));
  return { rebuild, redraw, point, refresh: () => shown?.refresh() };
}

// Places in `files` of those whose scores can be taken from this file's, head by head.
export function othersLike(file, files) {
  const alike = (other) => ["heads", "layers", "width", "groups"].every((fact) => other[fact] === file[fact]);
  const fits = (other) => other !== file && !other.ranking && alike(other);
  return file.ranking ? [] : files.map((_, index) => index).filter((index) => fits(files[index]));
}

// Whether two files were scored by one method, as far as they state it.
export const shareUnit = (file, other) => file.methodName !== null && file.methodName === other.methodName;

// Scores of one method as they are; those of different methods, which share no unit, as percent of all score.
export function differences(view, other, inShares) {
  const unit = (side) => (inShares ? 100 / (side.total || 1) : 1);
  const clip = (value) => (inShares ? Math.max(value, 0) : value);
  return view.values.map((value, index) => clip(value) * unit(view) - clip(other.values[index]) * unit(other));
}

export function tellOf(file, other) {
  if (file.ranking) return (value) => (value > 0 ? "first" : "not ranked");
  return other ? signed : figure;
}

export function scaleName(file, other, inShares, root) {
  const name = other ? `difference in the ${inShares ? "shares of the total score, in percent" : "scores"}` : file.ranking ? "place in the ranking" : "mean score";
  return name + (root ? ", square-root colours" : "");
}

function differenceFacts(view, other, difference, index) {
  const told = (side) => `${figure(side.values[index])}, rank ${side.ranks[index]}`;
  return [["Difference", signed(difference)], ["This file", told(view)], [other.file.name, told(other)]];
}

// `badge` says why this head is shown while none is looked at.
export function showCard(card, title, facts, badge, more) {
  const hint = badge === "" ? [] : [make("p", { class: "quiet hint" }, `Point at a head, or move with the arrow keys${more}.`)];
  refill(card,
    make("p", { class: "card-title" }, title, badge ? make("span", { class: "badge" }, badge) : null),
    make("p", { class: "card-score" }, facts[0][1]),
    make("dl", {}, facts.slice(1).map(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]).flat()), ...hint);
}

export function say(text) {
  byId("spoken").textContent = text;
}
