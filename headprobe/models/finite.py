"""Whether the numbers that a model computes are finite, and what to do where they are not."""

from __future__ import annotations

from math import isinf
from typing import Any

import torch

from headprobe.errors import NonFiniteError
from headprobe.models.weights import here

NAMED = 3  # broken weights that a message lists


def usable(logits: torch.Tensor) -> torch.Tensor:
    """Which rows of `logits` `[..., vocabulary]` a token can be chosen from: bool `[...]`, on the same device.

    A row's largest logit must be finite, which it is not where any is NaN. Single entries may be -inf: some models and
    many logits processors mask entries of the vocabulary that way.

    >>> usable(torch.tensor([[0.0, -torch.inf], [0.0, torch.nan], [-torch.inf, -torch.inf]])).tolist()
    [True, False, False]
    """
    return logits.amax(-1).isfinite()


def non_finite(model: Any, what: str) -> NonFiniteError:
    """The error for `what`, a full clause, with advice that fits the model's weights and dtype."""
    return NonFiniteError(f"{what}: {advice(model)}")


def advice(model: Any) -> str:
    """What may help: other files where weights hold NaN, else a dtype that reaches further, where there is one."""
    extremes = {name: _extremes(here(weight)) for name, weight in model.named_parameters()}
    has_nan = [name for name, (low, _) in extremes.items() if low != low]
    infinite = [name for name, ends in extremes.items() if any(isinf(end) for end in ends)]
    if has_nan:
        return f"the weights themselves hold NaN ({_listed(has_nan)}), the model's files are broken"
    if infinite and model.dtype == torch.float16:
        return f"weights overflow in float16 ({_listed(infinite)}), try --dtype bfloat16 or float32"
    if infinite:
        return f"the weights themselves hold infinity ({_listed(infinite)})"
    if model.dtype == torch.float16:
        return "float16 overflows in many models, try --dtype bfloat16 or float32"
    if model.dtype == torch.bfloat16:
        return "try --dtype float32"
    return f"it is computed in {str(model.dtype).removeprefix('torch.')} already, so weights and config do not fit"


def watched_generate(model: Any, inputs: torch.Tensor | None = None, **options: Any) -> Any:
    """`model.generate(...)`, which raises `NonFiniteError` in the end where a token was chosen from unusable logits.

    What is seen waits on the device, so that no step waits for the host.
    """
    watch = _Watch()
    given = {**options, "logits_processor": [*(options.get("logits_processor") or ()), watch]}
    try:
        made = model.generate(inputs, **given)
    except RuntimeError as error:  # torch refuses to draw from NaN
        if watch.saw_unusable:
            raise non_finite(model, "NaN or infinity in the logits") from error
        raise
    if watch.saw_unusable:
        raise non_finite(model, "NaN or infinity in the logits")
    return made


class _Watch:
    """A logits processor that changes nothing and remembers whether all logits were usable."""

    def __init__(self) -> None:
        self._fine: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        fine = usable(scores).all()
        self._fine = fine if self._fine is None else self._fine & fine
        return scores

    @property
    def saw_unusable(self) -> bool:
        """Waits for the device."""
        return self._fine is not None and not bool(self._fine)


def _extremes(weight: torch.Tensor) -> tuple[float, float]:
    """The smallest and the largest number, both NaN where there is one; zeros for weights that hold no such numbers.

    Takes no memory of the weight's size: the device may be full.
    """
    if type(weight) not in (torch.Tensor, torch.nn.Parameter):  # held in a way of its own
        return 0.0, 0.0
    if weight.is_meta or not weight.numel() or not weight.is_floating_point() or weight.element_size() < 2:
        return 0.0, 0.0
    low, high = torch.aminmax(weight.detach())
    return float(low), float(high)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
