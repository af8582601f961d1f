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

export const make = (tag, properties, ...children) => fill(document.createElement(tag), properties, children);
export const draw = (tag, properties, ...children) => fill(document.createElementNS(SVG, tag), properties, children);
export const byId = (id) => document.getElementById(id);

export function refill(host, ...children) {
  host.replaceChildren(...children.flat().filter((child) => child !== null));
  return host;
}

// A label with a control in it; `hint` is what the control is set to, in words.
export function labelled(text, control, hint = null) {
  return make("label", { class: "control" }, make("span", { class: "control-name" }, text), control, hint);
}

export function chooser(options, chosen, onchange) {
  const select = make("select", { onchange: () => onchange(select.value) });
  for (const [value, text] of options) select.append(make("option", { value }, text));
  select.value = chosen;
  return select;
}
