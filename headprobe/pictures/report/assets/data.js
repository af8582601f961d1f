// What the page is about: `files`, `pairs` and the ramps of `colours`, as Python wrote them.
export const DATA = { files: [], pairs: [], colours: { paper: [], below: [], night: [], belowNight: [] } };

export function readData(text) {
  return Object.assign(DATA, JSON.parse(text));
}
