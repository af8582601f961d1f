"""What commands say about the prompts of a plan: which are the same, and where their needles really stand."""

from __future__ import annotations

from headprobe.commands.output import tell
from headprobe.probes.prompt import duplicate_prompts
from headprobe.profiling.run import Prepared


def tell_prompts(prepared: Prepared) -> None:
    """On stderr, what was given twice, and how many prompts are the same as one of another depth, with the reason."""
    groups = duplicate_prompts(prepared.prompts)
    if prepared.plan.removed:
        tell(f"given twice, taken once: {', '.join(prepared.plan.removed)}")
    if groups:
        extra = sum(len(group) - 1 for group in groups)
        reached = {prompt.trial_id: prompt.depth_reached for prompt in prepared.prompts}
        tell(
            f"warning: {extra} of {len(prepared.prompts)} prompts are the same as one of another depth "
            f"({_reason(reached[groups[0][0]])}), such as {' and '.join(groups[0][:2])}"
        )


def _reason(reached: float | None) -> str:
    if reached is None:
        return "beside needle and question there is no room for background"
    return f"of all places for a needle, {reached:g} % is the nearest to both"


def depths_reached(prepared: Prepared) -> list[float | None]:
    """For each depth of the plan the mean depth at which its needles really stand, in percent; None without any."""
    specs = {spec.id: spec for spec in prepared.plan.trials()}
    found: dict[float, list[float]] = {depth: [] for depth in prepared.plan.depths}
    for prompt in prepared.prompts:
        if prompt.depth_reached is not None:
            found[specs[prompt.trial_id].depth].append(prompt.depth_reached)
    return [round(sum(reached) / len(reached), 2) if reached else None for reached in found.values()]
