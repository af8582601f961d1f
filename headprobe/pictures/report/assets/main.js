// The page's own start, and the one function that others may call.
import { readData } from "./data.js";
import { byId } from "./dom.js";
import { headScoreBudgets } from "./allocation.js";
import { start } from "./page.js";

readData(byId("data").textContent);
window.headprobe = { headScoreBudgets };
start();
