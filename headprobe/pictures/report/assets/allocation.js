// The rule of `headprobe.compression.budgets`, once more: the two are tested against each other.

// Tokens for each KV head of these scores; they sum to min(budget, promptTokens) * heads exactly.
// floor + p * pool with B = budget - floor, pool = B / beta * heads, floor B - B / beta; capped at the prompt.
export function headScoreBudgets(scores, budget, floor, beta, promptTokens) {
  const heads = scores.length;
  if (promptTokens <= budget) return new Array(heads).fill(promptTokens);
  const clipped = scores.map((score) => Math.max(score, 0));
  const total = sumOf(clipped);
  const spare = budget - floor;
  const pool = spare / beta;
  const shares = clipped.map((score) => spare - pool + (total > 0 ? score / total : 1 / heads) * pool * heads);
  return shareOut(shares, spare * heads, promptTokens - floor).map((tokens) => tokens + floor);
}

// Whole numbers in proportion to `shares`, none above `cap`, that sum to `total`.
export function shareOut(shares, total, cap) {
  return roundToTotal(waterFill(shares, total, cap), total, cap);
}

// min(cap, lambda * share) that sums to `total`: what a full head frees goes to the others in proportion.
function waterFill(shares, total, cap) {
  const filled = shares.map(() => 0);
  const free = shares.map(() => true);
  let remaining = total;
  while (remaining > 0 && free.includes(true)) {
    let wanted = shares.map((share, i) => (free[i] ? share : 0));
    if (sumOf(wanted) === 0) wanted = free.map((isFree) => (isFree ? 1 : 0));
    const sum = sumOf(wanted);
    const left = remaining;
    const given = wanted.map((share) => left * (share / sum));
    const full = given.map((tokens, i) => free[i] && tokens >= cap);
    if (!full.includes(true)) {
      given.forEach((tokens, i) => { if (free[i]) filled[i] = tokens; });
      break;
    }
    full.forEach((isFull, i) => { if (isFull) { filled[i] = cap; free[i] = false; } });
    remaining = total - cap * free.filter((isFree) => !isFree).length;
  }
  return filled;
}

// Round down, then one more to the largest remainders (of equal ones the earlier head) until the total is met.
function roundToTotal(filled, total, cap) {
  const tokens = filled.map((value) => Math.floor(value + 1e-9));
  const rest = filled.map((value, i) => value - tokens[i]);
  const order = rest.map((_, i) => i).sort((a, b) => rest[b] - rest[a] || a - b);
  let missing = total - sumOf(tokens);
  for (const head of missing > 0 ? order : order.reverse()) {
    if (missing === 0) break;
    const step = missing > 0 ? 1 : -1;
    if (tokens[head] + step < 0 || tokens[head] + step > cap) continue;
    tokens[head] += step;
    missing -= step;
  }
  return tokens;
}

export const sumOf = (values) => values.reduce((sum, value) => sum + value, 0);
