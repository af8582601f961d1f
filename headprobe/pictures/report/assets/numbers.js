// Numbers as the page writes them.
export const whole = new Intl.NumberFormat("en-US");

// Four digits that count; 0 stays 0.
export function figure(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.floor(Math.log10(Math.abs(value)));
  if (size < -5) return value.toExponential(digits - 2);
  return value.toFixed(Math.max(0, Math.min(digits - 1 - Math.min(size, 0), 9) - Math.max(size, 0)));
}

export const signed = (value) => (value > 0 ? "+" : "") + figure(value);
export const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
export const range = (low, high) => `${figure(low)} to ${figure(high)}`;
export const plainRank = (rank) => (Number.isInteger(rank) ? String(rank) : rank.toFixed(1));
export const compact = (tokens) => (tokens < 10000 ? String(tokens) : `${Math.round(tokens / 1000)}k`);
export const mebibytes = (bytes) => (bytes >= 2 ** 30 ? `${figure(bytes / 2 ** 30, 3)} GiB` : `${figure(bytes / 2 ** 20, 3)} MiB`);
