// Numbers as the page writes them.
export const whole = new Intl.NumberFormat("en-US");

// So many digits that count, with a power of ten below 0.00001; 0 stays 0.
export function figure(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const short = value.toExponential(digits - 1);
  const size = Number(short.slice(short.indexOf("e") + 1)); // of the rounded number: 9.9999 has two digits before the point
  return size < -5 ? short : value.toFixed(Math.max(0, digits - 1 - size));
}

export const signed = (value) => (value > 0 ? "+" : "") + figure(value);
export const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
export const range = (low, high) => `${figure(low)} to ${figure(high)}`;
export const plainRank = (rank) => (Number.isInteger(rank) ? String(rank) : rank.toFixed(1));
export const compact = (tokens) => (tokens < 10000 ? String(tokens) : `${Math.round(tokens / 1000)}k`);
export const mebibytes = (bytes) => (bytes >= 2 ** 30 ? `${figure(bytes / 2 ** 30, 3)} GiB` : `${figure(bytes / 2 ** 20, 3)} MiB`);
