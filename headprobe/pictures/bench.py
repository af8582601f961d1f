"""What a cache costs, in a picture: latency over the answer's length, peak memory over the prompt's, a line per policy.

After figure 6 of the HeadKV paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from headprobe.errors import OptionError
from headprobe.pictures.page import GRID, Sheet, head_line, label_axes
from headprobe.pictures.style import BELOW_ZERO, INK, ON_PAPER, QUIET, RING, count, hexadecimal, printable

HIGH, GAP_X, GAP_Y, ROW = 2.3, 0.85, 0.85, 0.2  # inches
LEGEND_COLUMNS = 4
MOST_LINES = 40
MOST_BATCHES = 6
COLOURS = [hexadecimal(c) for c in (ON_PAPER[4], RING, ON_PAPER[2], BELOW_ZERO[4], ON_PAPER[6], BELOW_ZERO[2])]
STYLES: tuple[Any, ...] = ("solid", (0, (4, 1.6)), (0, (1, 1.3)), (0, (6, 1.5, 1, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FIXED: dict[str, dict[str, Any]] = {
    "full": {"color": hexadecimal(INK), "linestyle": (0, (5, 3)), "marker": "o"},
    "transformers": {"color": hexadecimal(QUIET), "linestyle": (0, (1, 1.5)), "marker": "x"},
}
UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))

Key = tuple[str, int | None, str | None]


def bench_figure(record: Mapping[str, Any]) -> Figure:
    """The picture of a bench's `record`: a row of two panels for each batch size.

    Latency is that of the longest prompt whose answers were decoded to the end. Where nothing was measured a line ends.
    Raises `OptionError` for more lines or batches than can be told apart.
    """
    cells = record["cells"]
    keys = list(dict.fromkeys(key_of(cell) for cell in cells if cell["prefill_s"] is not None))
    if not 1 <= len(keys) <= MOST_LINES or len(record["batches"]) > MOST_BATCHES:
        raise OptionError(
            f"{len(keys)} lines for {len(record['batches'])} batches do not fit one picture, "
            f"at most {MOST_LINES} and {MOST_BATCHES}"
        )
    looks = line_looks(keys)
    legend = ROW * -(-len(keys) // LEGEND_COLUMNS) + 0.35
    rows = len(record["batches"])
    sheet = Sheet(
        f"{printable(record['model'])}: what a cache costs", _subtitle(record), _facts(record),
        legend + rows * HIGH + (rows - 1) * GAP_Y + 0.4,
    )  # fmt: skip
    width = (sheet.measure - GAP_X) / 2
    for index, batch in enumerate(record["batches"]):
        own = [cell for cell in cells if cell["batch"] == batch]
        y = legend + index * (HIGH + GAP_Y)
        length = decoded_length(own)
        several = "" if rows == 1 else f", batch of {batch:,}"
        left, right = sheet.axes(0, y, width, HIGH), sheet.axes(width + GAP_X, y, width, HIGH)
        head_line(left, f"latency, prompt of {length:,} tokens{several}")
        head_line(right, f"peak memory beyond the weights{several}")
        _draw_latency(left, own, length, looks)
        _draw_peak(right, own, looks)
    _draw_legend(sheet, looks)
    return sheet.page.figure


def key_of(cell: Mapping[str, Any]) -> Key:
    """What a line stands for: policy and budget, of the full cache the kernel too."""
    return cell["policy"], cell["budget"], cell["kernel"] if cell["policy"] == "full" else None


def decoded_length(cells: Sequence[Mapping[str, Any]]) -> int:
    """The longest prompt among those with the longest answers.

    >>> decoded_length([{"length": 8, "new_tokens": [1, 4]}, {"length": 16, "new_tokens": [1]}])
    8
    """
    return int(max(cells, key=lambda cell: (cell["new_tokens"][-1], cell["length"]))["length"])


def line_looks(keys: Sequence[Key]) -> dict[Key, dict[str, Any]]:
    """Colour, dashes and marker of each line; no two look alike."""
    found: dict[Key, dict[str, Any]] = {}
    others = fulls = 0
    for key in keys:
        if key[0] in FIXED:
            found[key] = dict(FIXED[key[0]])
            if key[0] == "full":
                found[key]["marker"] = MARKERS[fulls % len(MARKERS)]
                fulls += 1
            continue
        found[key] = {
            "color": COLOURS[others % len(COLOURS)],
            "linestyle": STYLES[others // len(COLOURS) % len(STYLES)],
            "marker": MARKERS[others % len(MARKERS)],
        }
        others += 1
    return found


def latency_points(cells: Sequence[Mapping[str, Any]], key: Key, length: int) -> list[tuple[int, float]]:
    """Answer's length and seconds until it was there."""
    for cell in cells:
        if key_of(cell) == key and cell["length"] == length and cell["latency_s"] is not None:
            return list(zip(cell["new_tokens"], cell["latency_s"], strict=True))
    return []


def peak_points(cells: Sequence[Mapping[str, Any]], key: Key) -> list[tuple[int, float]]:
    """Prompt's length and peak bytes."""
    found = [(cell["length"], cell["peak_bytes"]) for cell in cells if key_of(cell) == key]
    return sorted((length, peak) for length, peak in found if peak is not None)


def _draw_latency(axes: Axes, cells: Sequence[Mapping[str, Any]], length: int, looks: Mapping[Key, Any]) -> None:
    lines = {key: latency_points(cells, key, length) for key in looks}
    _draw(axes, lines, looks, 1.0)
    axes.locator_params(axis="x", nbins=6, integer=True)
    label_axes(axes, "tokens of the answer", "seconds, prefill included")


def _draw_peak(axes: Axes, cells: Sequence[Mapping[str, Any]], looks: Mapping[Key, Any]) -> None:
    lines = {key: peak_points(cells, key) for key in looks}
    peaks = [peak for points in lines.values() for _, peak in points]
    if not peaks:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=hexadecimal(QUIET))
        return
    size, unit = next(((s, u) for s, u in UNITS if max(peaks) >= s), (1, "bytes"))
    _draw(axes, lines, looks, size)
    lengths = sorted({length for points in lines.values() for length, _ in points})
    if len(lengths) > 1:
        axes.set_xscale("log", base=2)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(lengths, [f"{length:,}" if length % 1024 else f"{length // 1024}k" for length in lengths])
    label_axes(axes, "tokens of the prompt", unit)


def _draw(axes: Axes, lines: Mapping[Key, Any], looks: Mapping[Key, Any], size: float) -> None:
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for key, points in lines.items():
        across, up = [x for x, _ in points], [y / size for _, y in points]
        axes.plot(across, up, linewidth=1.5, markersize=3.6, clip_on=False, **looks[key])
    axes.set_ylim(bottom=0.0)


def _draw_legend(sheet: Sheet, looks: Mapping[Key, Any]) -> None:
    kernels = {key[2] for key in looks if key[0] == "full"}
    names = [_name(key, several_kernels=len(kernels) > 1) for key in looks]
    axes = sheet.axes(0, 0, sheet.measure, ROW * -(-len(looks) // LEGEND_COLUMNS))
    axes.set_axis_off()
    handles = [Line2D([], [], label=n, markersize=3.6, **look) for n, look in zip(names, looks.values(), strict=True)]
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0, 1), ncols=min(len(names), LEGEND_COLUMNS), frameon=False,
        fontsize=8.0, labelcolor=hexadecimal(QUIET), handlelength=2.4, columnspacing=1.6, borderpad=0, borderaxespad=0,
    )  # fmt: skip


def _name(key: Key, *, several_kernels: bool) -> str:
    policy, budget, kernel = key
    if policy == "full":
        return f"full ({kernel})" if several_kernels else "full"
    return printable(policy if budget is None else f"{policy}, {budget:,}", 32)


def _subtitle(record: Mapping[str, Any]) -> str:
    weights = "random weights, " if record["random_weights"] else ""
    where = record["environment"]
    kind = str(record["dtype"]).removeprefix("torch.")
    return f"{weights}{kind} on {printable(where['device'])}, {count(where['threads'], 'thread')}"


def _facts(record: Mapping[str, Any]) -> tuple[str, ...]:
    where = record["environment"]
    facts = [
        f"median of {count(record['repeats'], 'run')}",
        "budgets: mean entries per KV head",
        f"headprobe {where['headprobe']}, torch {where['torch']}, transformers {where['transformers']}",
    ]
    if any(cell["error"] is not None for cell in record["cells"]):
        facts.append("missing points: see the table")
    return tuple(facts)
