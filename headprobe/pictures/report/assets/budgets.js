// The tokens that KV heads may keep, by sliders.
import { compact, figure, mebibytes, percent, whole } from "./numbers.js";
import { byId, chooser, labelled, make, refill } from "./dom.js";
import { joinHeads } from "./scores.js";
import { exploreGrid, legend } from "./grid.js";
import { say, showCard } from "./heads.js";
import { headScoreBudgets, sumOf } from "./allocation.js";

const SIZES = [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096];
const BETAS = [1.005, 1.01, 1.05, 1.1, 1.2, 1.35, 1.5, 2, 3, 5, 10];
const PROMPTS = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072];
const BYTES = 2; // of a 16-bit number

export function budgetsSection(page) {
  const host = byId("budgets-body");
  const state = { size: 128, beta: 1.2, prompt: 8192, window: 8, how: "mean", groups: null };
  const told = make("p", { class: "outcome", role: "status" });
  const map = make("div", { class: "grid-host" });
  const card = make("aside", { class: "card", "aria-label": "The selected KV head" });
  const key = make("div");

  function slider(id, name, values, field, tell, hint) {
    const output = make("output", { for: id }, tell(state[field]));
    const input = make("input", { type: "range", id, min: 0, max: values.length - 1, step: 1, oninput: () => {
      state[field] = values[Number(input.value)];
      output.textContent = tell(state[field]);
      input.setAttribute("aria-valuetext", tell(state[field]));
      redraw();
    } });
    input.value = String(values.indexOf(state[field]));
    input.setAttribute("aria-valuetext", tell(state[field]));
    return make("div", { class: "slider" }, make("label", { for: id }, name), output, input, make("span", { class: "quiet" }, hint));
  }

  function rebuild() {
    const file = page.file();
    if (file.ranking) {
      refill(host, make("p", { class: "note" }, "The file is a ranking. It has no scores, by which to allocate memory."));
      return;
    }
    const isKv = file.heads === "kv";
    if (file.coverage) state.prompt = promptFor(file.coverage.lengths);
    state.groups = isKv ? file.width : file.groups ?? file.width;
    const asks = !isKv && !file.groups;
    const choices = make("div", { class: "controls" },
      asks ? labelled("KV heads per layer (the file does not state it)", chooser(divisorsOf(file.width).map((count) => [String(count), String(count)]), String(state.groups), (value) => { state.groups = Number(value); redraw(); })) : null,
      isKv ? null : labelled("A KV head scores as", chooser([["mean", "the mean of its query heads"], ["max", "its best query head"]], state.how, (value) => { state.how = value; redraw(); })));
    refill(host,
      make("div", { class: "sliders" },
        slider("size", "Tokens kept per KV head, on average", SIZES, "size", (value) => whole.format(value), `the latest ${state.window} of them for every head`),
        slider("beta", "Beta", BETAS, "beta", String, "closer to 1 gives head scores more weight"),
        slider("prompt", "Tokens of the prompt", PROMPTS, "prompt", (value) => whole.format(value), "the most that one head can keep")),
      choices, told, make("div", { class: "split" }, make("div", { class: "grow" }, map, key), card));
    redraw();
  }

  function redraw() {
    const file = page.file();
    if (file.ranking) return;
    const scores = file.heads === "kv" ? file.mean : joinHeads(file.mean, file.layers, state.groups, state.how);
    const tokens = headScoreBudgets(scores, state.size, state.window, state.beta, state.prompt);
    const most = tokens.reduce((found, count) => Math.max(found, count), 0);
    const title = (index) => `Layer ${Math.floor(index / state.groups)}, KV head ${index % state.groups}`;
    const facts = (index) => [["Tokens kept", whole.format(tokens[index])], ["Of the prompt", percent(tokens[index] / state.prompt)], ["Score", figure(scores[index])]];
    exploreGrid(map, {
      rows: file.layers, columns: state.groups, group: 1, noun: "KV head", values: tokens, start: tokens.indexOf(most),
      label: "Tokens kept by every KV head", fraction: (count) => count / most, rings: false, kept: () => null,
      text: (index) => (state.groups <= 16 ? compact(tokens[index]) : ""), title, facts, onpick() {},
      onshow: (index, spoken) => {
        const looked = index ?? tokens.indexOf(most);
        showCard(card, title(looked), facts(looked), index === null ? "most" : "", "");
        if (spoken && index !== null) say(`${title(index)}: ${whole.format(tokens[index])} tokens`);
      },
    }).show(null, false);
    refill(key, legend(0, most, (share) => share, (value) => whole.format(value), "tokens kept"));
    told.textContent = outcome(file, tokens, state);
  }

  return { rebuild, redraw };
}

// The longest prompt on the slider that the file's own probes reach; the shortest one for shorter probes.
export function promptFor(lengths) {
  return PROMPTS.findLast((tokens) => tokens <= Math.max(PROMPTS[0], ...lengths));
}

export function divisorsOf(width) {
  return Array.from({ length: width }, (_, i) => i + 1).filter((count) => width % count === 0);
}

// What the budgets come to, in words.
export function outcome(file, tokens, state) {
  const total = sumOf(tokens);
  const sorted = [...tokens].sort((a, b) => a - b);
  const full = sorted.filter((count) => count >= state.prompt).length;
  const memory = file.headDim ? ` That is ${mebibytes(2 * total * file.headDim * BYTES)} in 16-bit numbers instead of ${mebibytes(2 * tokens.length * state.prompt * file.headDim * BYTES)}.` : "";
  const kept = full ? ` ${whole.format(full)} ${full === 1 ? "head keeps" : "heads keep"} the whole prompt.` : "";
  return `${whole.format(total)} entries in all: ${percent(total / tokens.length / state.prompt)} of a full cache. Heads keep ${whole.format(sorted[0])} to ${whole.format(sorted[sorted.length - 1])} tokens, half of them at most ${whole.format(sorted[Math.floor((sorted.length - 1) / 2)])}.${kept}${memory}`;
}
