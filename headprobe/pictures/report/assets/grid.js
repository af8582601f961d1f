// A map of layers by heads that the pointer and the arrow keys explore.
import { byId, draw, make, refill } from "./dom.js";
import { css, inkOn, shade } from "./colours.js";

const EDGE = { left: 34, top: 6, right: 6, bottom: 26 };

// `grid`: rows, columns, group, noun, values, start, rings, fraction(value), facts(index), title(index), label, text(index), kept()
export function exploreGrid(host, grid) {
  const cell = Math.max(11, Math.min(46, Math.floor(780 / grid.columns), Math.floor(920 / grid.rows)));
  const size = [EDGE.left + grid.columns * cell + EDGE.right, EDGE.top + grid.rows * cell + EDGE.bottom];
  const cursor = draw("rect", { class: "cursor", width: cell, height: cell, rx: 3, visibility: "hidden" });
  const picture = draw("svg", { viewBox: `0 0 ${size[0]} ${size[1]}`, "aria-hidden": "true", focusable: "false" });
  picture.append(...gridCells(grid, cell), ...gridLabels(grid, cell), cursor);
  const frame = make("div", {
    class: "grid-frame", tabindex: 0, role: "application", "aria-roledescription": "heat map",
    "aria-label": `${grid.label}. ${grid.rows} layers, ${grid.columns} ${grid.noun}s each. Arrow keys move, Enter keeps a head.`,
  }, picture);
  frame.style.setProperty("--natural", `${size[0]}px`);
  frame.style.setProperty("--least", `${Math.min(size[0], EDGE.left + grid.columns * 10)}px`);
  const state = { at: null, start: grid.start ?? 0 };
  const show = (index, spoken) => {
    state.at = index;
    const marked = index ?? grid.kept();
    const place = marked === null ? null : [marked % grid.columns, Math.floor(marked / grid.columns)];
    cursor.setAttribute("visibility", place ? "visible" : "hidden");
    if (place) {
      cursor.setAttribute("x", EDGE.left + place[0] * cell);
      cursor.setAttribute("y", EDGE.top + place[1] * cell);
    }
    grid.onshow(index, spoken);
  };
  listenToPointer(picture, grid, cell, size, show);
  listenToKeys(frame, grid, state, show);
  refill(host, frame);
  return { show, refresh: () => show(state.at, false) };
}

function gridCells(grid, cell) {
  return grid.values.map((value, index) => {
    const colour = shade(grid.fraction(value));
    const [x, y] = [EDGE.left + (index % grid.columns) * cell, EDGE.top + Math.floor(index / grid.columns) * cell];
    const opens = grid.group > 1 && index % grid.columns && (index % grid.columns) % grid.group === 0;
    const text = grid.text(index);
    const ringed = grid.rings && text !== "";
    const [ahead, edge] = ringed ? [3, 3] : [opens ? 2 : 0.5, 0.5];
    const tile = draw("rect", {
      x: x + ahead, y: y + edge, width: cell - ahead - edge, height: cell - 2 * edge, rx: 2, fill: css(colour),
    });
    if (text === "") return tile;
    const inset = { x: x + 1, y: y + 1, width: cell - 2, height: cell - 2, rx: 4 };
    const size = Math.min(12, (cell * 1.25) / Math.max(text.length, 2));
    const place = { x: x + cell / 2, y: y + cell / 2 + size * 0.36, fill: inkOn(colour), "font-size": size };
    return draw("g", {}, tile, ringed ? draw("rect", { class: "ring", ...inset }) : null, draw("text", { class: "in-cell", ...place }, text));
  });
}

// Every how many rows or columns have a label, so that there are at most `most`.
export const labelStep = (count, most) => 2 ** Math.max(0, Math.ceil(Math.log2(count / most)));

function gridLabels(grid, cell) {
  const labels = [];
  for (let column = 0; column < grid.columns; column += labelStep(grid.columns, 16)) {
    labels.push(draw("text", { x: EDGE.left + (column + 0.5) * cell, y: EDGE.top + grid.rows * cell + 16, class: "tick" }, String(column)));
  }
  for (let row = 0; row < grid.rows; row += labelStep(grid.rows, 32)) {
    labels.push(draw("text", { x: EDGE.left - 8, y: EDGE.top + (row + 0.5) * cell + 4, class: "tick tick-row" }, String(row)));
  }
  return labels;
}

function listenToPointer(picture, grid, cell, size, show) {
  const indexAt = (event) => {
    const box = picture.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left) / box.width * size[0] - EDGE.left) / cell);
    const row = Math.floor(((event.clientY - box.top) / box.height * size[1] - EDGE.top) / cell);
    const inside = column >= 0 && row >= 0 && column < grid.columns && row < grid.rows;
    return inside ? row * grid.columns + column : null;
  };
  picture.addEventListener("pointermove", (event) => {
    const index = indexAt(event);
    show(index, false);
    if (index === null) hideTip();
    else showTip(grid.title(index), grid.facts(index), event.clientX, event.clientY);
  });
  picture.addEventListener("pointerleave", () => {
    hideTip();
    show(null, false);
  });
  picture.addEventListener("click", (event) => {
    const index = indexAt(event);
    if (index !== null) grid.onpick(index);
  });
}

// Where a key leads from the head `at`, which stays at the edge; null for a key that moves nothing.
export function movedBy(key, toEnd, at, { rows, columns }) {
  const [row, column] = [Math.floor(at / columns), at % columns];
  switch (key) {
    case "ArrowLeft": return column > 0 ? at - 1 : at;
    case "ArrowRight": return column < columns - 1 ? at + 1 : at;
    case "ArrowUp": return row > 0 ? at - columns : at;
    case "ArrowDown": return row < rows - 1 ? at + columns : at;
    case "Home": return toEnd ? 0 : row * columns;
    case "End": return toEnd ? rows * columns - 1 : (row + 1) * columns - 1;
    default: return null;
  }
}

function listenToKeys(frame, grid, state, show) {
  frame.addEventListener("keydown", (event) => {
    const at = state.at ?? state.start;
    const moved = movedBy(event.key, event.ctrlKey, at, grid);
    if (event.key === "Enter" || event.key === " ") grid.onpick(at);
    else if (moved !== null) show(state.at === null ? at : moved, true);
    else return;
    event.preventDefault();
  });
  frame.addEventListener("focus", () => {
    if (frame.matches(":focus-visible")) show(state.at ?? state.start, true);
  });
  frame.addEventListener("blur", () => show(null, false));
}

export function showTip(title, facts, x, y) {
  const tip = byId("tip");
  refill(tip, make("strong", {}, title), make("dl", {}, facts.map(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]).flat()));
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, x + 18 + box.width > innerWidth ? x - box.width - 14 : x + 18)}px`;
  tip.style.top = `${Math.max(8, Math.min(y + 14, innerHeight - box.height - 8))}px`;
}

export const hideTip = () => {
  byId("tip").hidden = true;
};

// A strip of the ramp with its ends named; `bend` is how shares of the largest value become colours.
export function legend(low, high, bend, tell, text) {
  const reach = Math.max(Math.abs(low), Math.abs(high)) || 1;
  const strip = make("span", { class: "strip", "aria-hidden": "true" });
  const stops = Array.from({ length: 25 }, (_, i) => css(shade(bend((low + ((high - low) * i) / 24) / reach))));
  strip.style.backgroundImage = `linear-gradient(to right, ${stops.join(", ")})`;
  return make("p", { class: "legend" }, make("span", {}, tell(low)), strip, make("span", {}, tell(high)), make("span", { class: "quiet" }, text));
}
