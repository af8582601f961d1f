// The ramps of all headprobe pictures: one for paper, one for the night.
import { DATA } from "./data.js";
import { byId } from "./dom.js";

export const isDarkTheme = () => {
  const stated = document.documentElement.dataset.theme;
  return stated ? stated === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
};

export function along(ramp, fraction) {
  const place = Math.min(Math.max(fraction, 0), 1) * (ramp.length - 1);
  const index = Math.min(Math.floor(place), ramp.length - 2);
  const part = place - index;
  return ramp[index].map((low, i) => Math.round(low + (ramp[index + 1][i] - low) * part));
}

// The colour of a fraction in [-1, 1] of the largest value.
export function shade(fraction) {
  const { paper, below, night, belowNight } = DATA.colours;
  const ramp = isDarkTheme() ? (fraction < 0 ? belowNight : night) : fraction < 0 ? below : paper;
  return along(ramp, Math.abs(fraction));
}

export const css = (rgb) => `rgb(${rgb.join(" ")})`;
export const inkOn = ([red, green, blue]) => (0.299 * red + 0.587 * green + 0.114 * blue < 140 ? "#fff" : "#1b1f23");

export function watchTheme(redraw) {
  const button = byId("theme");
  const name = () => {
    button.textContent = isDarkTheme() ? "Light theme" : "Dark theme";
  };
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDarkTheme() ? "light" : "dark";
    name();
    redraw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    name();
    redraw();
  });
  name();
}
