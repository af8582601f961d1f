"""`headprobe norms`: attention and value norm of every token, and how far the sinks' values fall below the others'."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from headprobe.commands.options import (
    ChatTemplateOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    OverwritePictureOption,
)
from headprobe.commands.output import print_table, stdout_console, write_json
from headprobe.commands.picture_output import PictureFile, figures, picture_file
from headprobe.commands.reading import one_length, prompt_name, read_text
from headprobe.errors import OptionError
from headprobe.evaluation.questions import needle_question
from headprobe.evaluation.value_norms import SinkDrop, ValueNorms, measure_value_norms, strongest_heads
from headprobe.models.catalog import short_name
from headprobe.models.loading import LoadedModel, load_model
from headprobe.probes.encoding import encode

NEEDLE_TOKENS = 1024
NUM_LAYERS = 3
COLUMNS = ("layer", "attention on sinks", "median norm", "sinks' norm", "ratio", "first token", "lowest head")


def norms_command(
    model: ModelOption = "demo",
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|-", help="Text to read (- is stdin); default: a fresh needle prompt.", show_default=False
        ),
    ] = None,
    length: Annotated[
        str | None,
        typer.Option(
            help="Tokens of the needle prompt; default: 1024, or the window where that is smaller.", show_default=False
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(help="Layers to draw, such as 0,3; default: first, middle and last.", show_default=False),
    ] = None,
    heads: Annotated[
        str | None,
        typer.Option(
            help="KV heads to draw, such as 0,1; default: in each layer, the one with the most attention on its sinks.",
            show_default=False,
        ),
    ] = None,
    sinks: Annotated[int, typer.Option(help="First tokens that count as sinks.")] = 4,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            show_default=False,
            help="The picture, ending in .png, .svg or .pdf; default: norms--<model>.png.",
        ),
    ] = None,
    chat: ChatTemplateOption = True,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: Annotated[int, typer.Option(help="Where the needle prompt's haystack begins.")] = 0,
    overwrite: OverwritePictureOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
) -> None:
    """Draw attention and value norm per token, and report how far the sinks' values fall below the median."""
    path = output or Path(f"norms--{short_name(model).replace('/', '--')}.png")
    picture = picture_file(path, overwrite, {"--prompt": None if prompt == "-" else prompt})
    if prompt is not None and length is not None:
        raise OptionError(f"--length {length} is for the needle prompt: leave it out with --prompt")
    if length is not None:
        one_length(length, "--length")
    text = None if prompt is None else read_text(prompt)
    loaded = load_model(model, device=device, dtype=dtype)
    shown = _numbers(layers, loaded.geometry.num_hidden_layers, "layer") or _spread(loaded)
    columns = _numbers(heads, loaded.geometry.num_key_value_heads, "KV head")
    if text is None:
        ids, source = _needle_prompt(loaded, length, seed, chat)
    else:
        ids, source = _tokens(loaded, text), prompt_name(prompt)
    measured = measure_value_norms(loaded, ids, sinks)
    drawn = [(la, h) for la in shown for h in columns] if columns else strongest_heads(measured, shown)
    _draw(measured, drawn, loaded.name, source, picture)
    if as_json:
        write_json({"path": str(path), **norms_record(loaded, measured, drawn, source)})
    else:
        _print(measured, loaded, source, path)


def norms_record(
    loaded: LoadedModel, measured: ValueNorms, drawn: Sequence[tuple[int, int]], source: str
) -> dict[str, Any]:
    """What `--json` prints: the table, and every token's numbers for the heads that are drawn."""
    found = {layer.layer: layer for layer in measured.layers}
    return {
        "model": loaded.name,
        "prompt": source,
        "prompt_tokens": len(measured.input_ids),
        "sinks": measured.num_sinks,
        "sink_tokens": _sink_tokens(loaded, measured),
        "layers": [_drop_record(drop) for drop in measured.drops()],
        "heads": [
            {
                "layer": layer,
                "kv_head": head,
                "attention": found[layer].attention[head].tolist(),
                "norms": found[layer].norms[head].tolist(),
            }
            for layer, head in drawn
        ],
    }


def _drop_record(drop: SinkDrop) -> dict[str, Any]:
    return {
        "layer": drop.layer,
        "window": drop.window,
        "attention_on_sinks": drop.attention,
        "median_norm": drop.median,
        "sink_norm": drop.sink_norm,
        "ratio": drop.ratio,
        "position_ratios": list(drop.position_ratios),
        "lowest": None if drop.lowest_head is None else {"kv_head": drop.lowest_head, "ratio": drop.lowest_ratio},
    }


def _sink_tokens(loaded: LoadedModel, measured: ValueNorms) -> list[str]:
    return [str(loaded.tokenizer.decode([token])) for token in measured.input_ids[: measured.num_sinks]]


# -- the prompt -----------------------------------------------------------------------------------------------------


def _tokens(loaded: LoadedModel, text: str) -> tuple[int, ...]:
    """The text, preceded by the special tokens that open one."""
    return tuple(encode(loaded.tokenizer, text).ids)


def _needle_prompt(loaded: LoadedModel, length: str | None, seed: int, chat: bool) -> tuple[tuple[int, ...], str]:
    """A prompt of one needle in the middle of a haystack, and its name."""
    tokens = min(NEEDLE_TOKENS, loaded.window) if length is None else one_length(length, "--length", loaded.window)
    found = needle_question(loaded, tokens, seed=seed, chat=chat)
    return found.input_ids, found.source


def _numbers(text: str | None, count: int, noun: str) -> list[int]:
    """Numbers below `count` from text such as `0,3`; each once, in the order given."""
    found: list[int] = []
    for part in [] if text is None else text.split(","):
        number = int(part) if part.strip().isdecimal() and part.isascii() and len(part) < 10 else -1
        if not 0 <= number < count:
            raise OptionError(f"{noun} {part.strip()!r} does not exist, the model has {noun}s 0 to {count - 1}")
        found.append(number)
    return list(dict.fromkeys(found))


def _spread(loaded: LoadedModel) -> list[int]:
    """First, middle and last of the layers that see the whole context; of all where none does."""
    geometry = loaded.geometry
    layers = geometry.full_attention_layers or tuple(range(geometry.num_hidden_layers))
    last = len(layers) - 1
    return list(dict.fromkeys(layers[last * i // (NUM_LAYERS - 1)] for i in range(NUM_LAYERS)))


# -- output ---------------------------------------------------------------------------------------------------------


def _draw(
    measured: ValueNorms, heads: Sequence[tuple[int, int]], model: str, source: str, picture: PictureFile
) -> None:
    picture.write(lambda: figures().norms_figure(measured, heads, model, source))


def _print(measured: ValueNorms, loaded: LoadedModel, source: str, path: Path) -> None:
    console = stdout_console()
    named = ", ".join(repr(token) for token in _sink_tokens(loaded, measured))
    told = f"{loaded.name} | {source} | {len(measured.input_ids):,} tokens | sinks: {named}"
    console.print(told + "\n", soft_wrap=True, markup=False)
    print_table(COLUMNS, [drop_row(drop) for drop in measured.drops()], right=COLUMNS[1:])
    for line in ("", "ratio: the sinks' mean norm / the median norm of the tokens after them", "", f"picture: {path}"):
        console.print(line, soft_wrap=True, markup=False)


def drop_row(drop: SinkDrop) -> tuple[str, ...]:
    """A layer's line of the table."""
    first = drop.position_ratios[0]
    return (
        str(drop.layer) + ("" if drop.window is None else f" (window {drop.window:,})"),
        f"{100 * drop.attention:.1f} %",
        f"{drop.median:.4g}",
        f"{drop.sink_norm:.4g}",
        _ratio(drop.ratio),
        _ratio(first),
        "" if drop.lowest_head is None else f"{_ratio(drop.lowest_ratio)} (KV head {drop.lowest_head})",
    )


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
