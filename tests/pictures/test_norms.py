from __future__ import annotations

import numpy as np
import pytest

from headprobe.commands.norms import drop_row
from headprobe.errors import OptionError
from headprobe.evaluation.value_norms import LayerNorms, SinkDrop, ValueNorms, strongest_heads
from headprobe.pictures.norms import norms_figure
from headprobe.pictures.page import figure_bytes, house_style


def measured(tokens: int = 50, layers: int = 2, groups: int = 2, num_sinks: int = 4) -> ValueNorms:
    """Sinks that draw ever more attention from head to head, with small values."""
    rng = np.random.default_rng(0)
    found = []
    for layer in range(layers):
        attention = rng.random((groups, tokens)).astype(np.float32)
        attention[:, :num_sinks] = np.arange(1, groups + 1)[:, None] * 100
        norms = rng.uniform(10, 20, (groups, tokens)).astype(np.float32)
        norms[:, :num_sinks] = 1.0
        found.append(LayerNorms(layer, attention / attention.sum(1, keepdims=True), norms))
    return ValueNorms(tuple(range(tokens)), num_sinks, tuple(found))


def drawn(found: ValueNorms, heads: list[tuple[int, int]]):  # type: ignore[no-untyped-def]
    with house_style():
        return norms_figure(found, heads, "toy/model", "prompt.txt")


def test_a_panel_is_attention_over_norms_with_the_sinks_apart() -> None:
    found = measured()
    above, below = drawn(found, [(1, 0)]).axes
    assert above.get_title(loc="left") == "layer 1, KV head 0"
    assert (above.get_yscale(), below.get_yscale()) == ("log", "linear")
    tokens, sinks = below.lines[:2]
    np.testing.assert_array_equal(sinks.get_xdata(), [0, 1, 2, 3])
    np.testing.assert_array_equal(sinks.get_ydata(), [1.0] * 4)
    np.testing.assert_array_equal(tokens.get_ydata(), found.layers[1].norms[0, 4:])
    assert below.lines[2].get_ydata()[0] == pytest.approx(np.median(found.layers[1].norms[0, 4:]))


def test_the_attention_scale_is_the_same_in_all_panels() -> None:
    axes = drawn(measured(), [(0, 0), (0, 1), (1, 0), (1, 1)]).axes
    assert len(axes) == 8
    assert len({above.get_ylim() for above in axes[::2]}) == 1


def test_no_attention_at_all_still_draws() -> None:
    found = measured()
    found.layers[0].attention[0, 10] = 0.0
    words = [text.get_text() for text in drawn(found, [(0, 0)]).texts]
    assert any("1 dot on the lower edge: below the scale" in text for text in words)


def test_the_same_numbers_give_the_same_bytes() -> None:
    found = measured()
    first, second = (figure_bytes(lambda: norms_figure(found, [(0, 1)], "m", "p"), "svg") for _ in range(2))
    assert first == second


def test_too_many_heads_are_refused() -> None:
    with pytest.raises(OptionError, match="33 heads are too many for one picture, at most 32"):
        norms_figure(measured(), [(0, 0)] * 33, "m", "p")


def test_the_strongest_head_has_most_attention_on_its_sinks() -> None:
    assert strongest_heads(measured(groups=3), [1, 0]) == [(1, 2), (0, 2)]


def test_a_row_of_the_table() -> None:
    drop = SinkDrop(3, 4096, 12.345, 1.2345, 0.1, (0.05, 0.15), 2, 0.025, 0.615)
    assert drop_row(drop) == ("3 (window 4,096)", "61.5 %", "12.35", "1.234", "0.100", "0.050", "0.025 (KV head 2)")
    nothing = SinkDrop(0, None, 0.0, 0.0, None, (None,), None, None, 0.0)
    assert drop_row(nothing) == ("0", "0.0 %", "0", "0", "", "", "")
