"""Find the attention heads of a language model that fetch answers from its context.

The names below are the public interface. Each is imported when it is first used, so `import headprobe` is quick:

    score(model, ScoreOptions(...), output=...)   probe a model, write score files; `.scores["r2"]` is a `HeadScores`
    load_scores(path)                             read a score file
    load_policy(path)                             read a policy file: `compress(model, **load_policy(path).arguments())`
    compress(model, policy, budget=...)           run a model on a compressed cache: `session.generate(...)`
    heatmap(scores, path)                         draw a table of head scores
    knockout(scores, model, KnockoutOptions(...)) what it costs to switch the best heads off, against random ones
"""

from __future__ import annotations

from importlib import import_module

from headprobe._version import __version__ as __version__

TYPE_CHECKING = False  # hardly anything is imported here, so that the command line is soon ready for an interrupt
if TYPE_CHECKING:
    from typing import Any

    from headprobe.compression.decoding import Sampler as Sampler
    from headprobe.compression.generation import generate_batch as generate_batch
    from headprobe.compression.policies import Policy as Policy
    from headprobe.compression.policies import make_policy as make_policy
    from headprobe.compression.ragged_cache import RaggedCache as RaggedCache
    from headprobe.compression.session import compress as compress
    from headprobe.errors import HeadprobeError as HeadprobeError
    from headprobe.evaluation.knockout.bench import KnockoutOptions as KnockoutOptions
    from headprobe.evaluation.knockout.study import knockout as knockout
    from headprobe.evaluation.tuning.policy_file import read_policy_file as load_policy
    from headprobe.geometry import ModelGeometry as ModelGeometry
    from headprobe.models.loading import LoadedModel as LoadedModel
    from headprobe.models.loading import geometry_of as geometry_of
    from headprobe.models.loading import load_model as load_model
    from headprobe.pictures.heatmap import draw_heatmap as heatmap
    from headprobe.probes.haystack import load_haystack as load_haystack
    from headprobe.probes.needle import load_needles as load_needles
    from headprobe.profiling.gathering import ScoreRun as ScoreRun
    from headprobe.profiling.job import ScoreOptions as ScoreOptions
    from headprobe.profiling.run import score as score
    from headprobe.scores.head_scores import HeadScores as HeadScores
    from headprobe.scores.score_file import load_scores as load_scores
    from headprobe.scores.score_file import write_score_file as write_score_file

__all__ = [
    "HeadScores",
    "HeadprobeError",
    "KnockoutOptions",
    "LoadedModel",
    "ModelGeometry",
    "Policy",
    "RaggedCache",
    "Sampler",
    "ScoreOptions",
    "ScoreRun",
    "__version__",
    "compress",
    "generate_batch",
    "geometry_of",
    "heatmap",
    "knockout",
    "load_haystack",
    "load_model",
    "load_needles",
    "load_policy",
    "load_scores",
    "make_policy",
    "score",
    "write_score_file",
]

_PUBLIC = {
    "HeadprobeError": ("headprobe.errors", "HeadprobeError"),
    "HeadScores": ("headprobe.scores.head_scores", "HeadScores"),
    "KnockoutOptions": ("headprobe.evaluation.knockout.bench", "KnockoutOptions"),
    "LoadedModel": ("headprobe.models.loading", "LoadedModel"),
    "ModelGeometry": ("headprobe.geometry", "ModelGeometry"),
    "Policy": ("headprobe.compression.policies", "Policy"),
    "RaggedCache": ("headprobe.compression.ragged_cache", "RaggedCache"),
    "Sampler": ("headprobe.compression.decoding", "Sampler"),
    "ScoreOptions": ("headprobe.profiling.job", "ScoreOptions"),
    "ScoreRun": ("headprobe.profiling.gathering", "ScoreRun"),
    "compress": ("headprobe.compression.session", "compress"),
    "generate_batch": ("headprobe.compression.generation", "generate_batch"),
    "geometry_of": ("headprobe.models.loading", "geometry_of"),
    "heatmap": ("headprobe.pictures.heatmap", "draw_heatmap"),
    "knockout": ("headprobe.evaluation.knockout.study", "knockout"),
    "load_haystack": ("headprobe.probes.haystack", "load_haystack"),
    "load_model": ("headprobe.models.loading", "load_model"),
    "load_needles": ("headprobe.probes.needle", "load_needles"),
    "load_policy": ("headprobe.evaluation.tuning.policy_file", "read_policy_file"),
    "load_scores": ("headprobe.scores.score_file", "load_scores"),
    "make_policy": ("headprobe.compression.policies", "make_policy"),
    "score": ("headprobe.profiling.run", "score"),
    "write_score_file": ("headprobe.scores.score_file", "write_score_file"),
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'headprobe' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
