// Elements are made here and nowhere else; text goes in as text, never as markup.
const SVG = "http://www.w3.org/2000/svg";

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined) element.append(child);
  }
  return element;
}

const make = (tag, properties, ...children) => fill(document.createElement(tag), properties, children);
const draw = (tag, properties, ...children) => fill(document.createElementNS(SVG, tag), properties, children);
const byId = (id) => document.getElementById(id);

function refill(host, ...children) {
  host.replaceChildren(...children.flat().filter((child) => child !== null));
  return host;
}

const whole = new Intl.NumberFormat("en-US");

// Four digits that count; 0 stays 0.
function figure(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.floor(Math.log10(Math.abs(value)));
  if (size < -5) return value.toExponential(digits - 2);
  return value.toFixed(Math.max(0, Math.min(digits - 1 - Math.min(size, 0), 9) - Math.max(size, 0)));
}

const signed = (value) => (value > 0 ? "+" : "") + figure(value);
const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
const range = (low, high) => `${figure(low)} to ${figure(high)}`;
const plainRank = (rank) => (Number.isInteger(rank) ? String(rank) : rank.toFixed(1));

// A label with a control in it; `hint` is what the control is set to, in words.
function labelled(text, control, hint = null) {
  return make("label", { class: "control" }, make("span", { class: "control-name" }, text), control, hint);
}

function chooser(options, chosen, onchange) {
  const select = make("select", { onchange: () => onchange(select.value) });
  for (const [value, text] of options) select.append(make("option", { value }, text));
  select.value = chosen;
  return select;
}
