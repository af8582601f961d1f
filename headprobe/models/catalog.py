"""Short names for models, and the bundled model that `demo` stands for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headprobe.errors import FileFormatError, ModelError, shown
from headprobe.home import in_home
from headprobe.models.gguf_file import ENDING as GGUF_ENDING
from headprobe.models.gguf_file import is_gguf

DEMO = "demo"
PLANTED_HEADS_FILE = "planted_heads.json"
COMPRESSION_FILE = "compression.json"
FOLDER_HINT = "point at a local folder that holds config.json, weights and tokenizer, as in --model ./folder"
REBUILD_HINT = "reinstall headprobe, or train the model in a clone: `python -m training`"


@dataclass(frozen=True)
class CatalogEntry:
    """An alias with the geometry of its model; `repo_id` is None for the bundled one; `window` is in tokens; `licence`
    is that of the weights."""

    alias: str
    repo_id: str | None
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    window: int
    licence: str
    note: str = ""


@dataclass(frozen=True)
class ResolvedModel:
    """What a name stands for: `source` is a local folder where `is_local`, a GGUF file where `is_gguf` too, else the
    id of a hub repository."""

    name: str
    source: str
    is_local: bool
    is_gguf: bool = False


@dataclass(frozen=True)
class PlantedHead:
    """A head that the training of the bundled model gave a known task."""

    layer: int
    head: int
    kind: str


@dataclass(frozen=True)
class PlantedHeads:
    """The known heads of the bundled model; `copying` are the (layer, head) pairs that a score should find."""

    copying: tuple[tuple[int, int], ...]
    all: tuple[PlantedHead, ...]


APACHE, MIT, TO_ACCEPT = "Apache-2.0", "MIT", "licence to accept"
LLAMA2, LLAMA3, GEMMA = "Llama 2", "Llama 3", "Gemma terms"

CATALOG: tuple[CatalogEntry, ...] = (
    CatalogEntry(DEMO, None, 6, 8, 4, 32, 2_048, APACHE, "bundled, with planted heads"),
    CatalogEntry("llama3-8b", "meta-llama/Meta-Llama-3-8B-Instruct", 32, 32, 8, 128, 8_192, LLAMA3, TO_ACCEPT),
    CatalogEntry("llama3.1-8b", "meta-llama/Llama-3.1-8B-Instruct", 32, 32, 8, 128, 131_072, "Llama 3.1", TO_ACCEPT),
    CatalogEntry("llama3.2-1b", "meta-llama/Llama-3.2-1B-Instruct", 16, 32, 8, 64, 131_072, "Llama 3.2", TO_ACCEPT),
    CatalogEntry("llama3.2-3b", "meta-llama/Llama-3.2-3B-Instruct", 28, 24, 8, 128, 131_072, "Llama 3.2", TO_ACCEPT),
    CatalogEntry("llama2-7b", "meta-llama/Llama-2-7b-chat-hf", 32, 32, 32, 128, 4_096, LLAMA2, TO_ACCEPT),
    CatalogEntry(
        "llama2-7b-80k", "yaofu/llama-2-7b-80k", 32, 32, 32, 128, 81_920, LLAMA2, "base, trained on 80k tokens"
    ),
    CatalogEntry("mistral-7b", "mistralai/Mistral-7B-Instruct-v0.2", 32, 32, 8, 128, 32_768, APACHE, "full attention"),
    CatalogEntry("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct", 30, 9, 3, 64, 8_192, APACHE),
    CatalogEntry("smollm2-360m", "HuggingFaceTB/SmolLM2-360M-Instruct", 32, 15, 5, 64, 8_192, APACHE),
    CatalogEntry("smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B-Instruct", 24, 32, 32, 64, 8_192, APACHE),
    CatalogEntry("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B-Instruct", 24, 14, 2, 64, 32_768, APACHE),
    CatalogEntry("qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B-Instruct", 28, 12, 2, 128, 32_768, APACHE),
    CatalogEntry("qwen2.5-7b", "Qwen/Qwen2.5-7B-Instruct", 28, 28, 4, 128, 32_768, APACHE),
    CatalogEntry("qwen2.5-coder-0.5b", "Qwen/Qwen2.5-Coder-0.5B-Instruct", 24, 14, 2, 64, 32_768, APACHE),
    CatalogEntry("qwen2.5-coder-1.5b", "Qwen/Qwen2.5-Coder-1.5B-Instruct", 28, 12, 2, 128, 32_768, APACHE),
    CatalogEntry("qwen3-0.6b", "Qwen/Qwen3-0.6B", 28, 16, 8, 128, 40_960, APACHE),
    CatalogEntry("qwen3-1.7b", "Qwen/Qwen3-1.7B", 28, 16, 8, 128, 40_960, APACHE),
    CatalogEntry("qwen3-4b", "Qwen/Qwen3-4B", 36, 32, 8, 128, 40_960, APACHE),
    CatalogEntry("qwen3-8b", "Qwen/Qwen3-8B", 36, 32, 8, 128, 40_960, APACHE),
    CatalogEntry("phi3-mini", "microsoft/Phi-3-mini-4k-instruct", 32, 32, 32, 96, 4_096, MIT, "sliding window of 2047"),
    CatalogEntry(
        "gemma3-270m", "google/gemma-3-270m", 18, 4, 1, 256, 32_768, GEMMA, "base; 5 of 6 layers slide over 512"
    ),
    CatalogEntry("gemma3-1b", "google/gemma-3-1b-it", 26, 4, 1, 256, 32_768, GEMMA, "5 of 6 layers slide over 512"),
    CatalogEntry("gemma3-4b", "google/gemma-3-4b-it", 34, 8, 4, 256, 131_072, GEMMA, "5 of 6 layers slide over 1024"),
    CatalogEntry("olmo2-7b", "allenai/OLMo-2-1124-7B-Instruct", 32, 32, 32, 128, 4_096, APACHE),
    CatalogEntry(
        "gpt-oss-20b", "openai/gpt-oss-20b", 24, 64, 8, 64, 131_072, APACHE, "every other layer slides over 128"
    ),
)


def aliases() -> tuple[str, ...]:
    """All short names, in the order of the table."""
    return tuple(entry.alias for entry in CATALOG)


def find_alias(name: str) -> CatalogEntry | None:
    """The entry called `name` (upper and lower case are one), or None."""
    return next((entry for entry in CATALOG if entry.alias == name.lower()), None)


def resolve(name: str) -> ResolvedModel:
    """Say what `name` stands for: an alias, else a folder or GGUF file that exists, else an id on the hub.

    Loads nothing. A folder that is called like an alias is reached as `./folder`. Raises `ModelError` for a name that
    can be none of them: empty, another file, or written as a path that does not exist.

    >>> resolve("llama3-8b").source
    'meta-llama/Meta-Llama-3-8B-Instruct'
    """
    entry = find_alias(name)
    if entry is not None:
        source = entry.repo_id or str(bundled_model_folder())
        return ResolvedModel(name, source, is_local=entry.repo_id is None)
    path = in_home(name)
    if name.strip() and path.is_dir():
        return ResolvedModel(name, str(path), is_local=True)
    if name.strip() and is_gguf(path):
        return ResolvedModel(name, str(path), is_local=True, is_gguf=True)
    if name.strip() and path.is_file():
        raise ModelError(f"model {name!r} is a file; give the folder that holds its config.json")
    if name.lower().endswith(GGUF_ENDING):
        raise ModelError(f"model {name!r}: there is no such GGUF file")
    if not name.strip() or name[0] in "./~\\" or name.count("/") > 1 or name.endswith("/"):
        raise ModelError(f"model {name!r}: no such alias and no such folder; {FOLDER_HINT}")
    return ResolvedModel(name, name, is_local=False)


def short_name(name: str) -> str:
    """`name` without the folders of this machine: an alias or a hub id as it is, the last part of a folder or file.

    >>> short_name("meta-llama/Meta-Llama-3-8B-Instruct")
    'meta-llama/Meta-Llama-3-8B-Instruct'
    """
    resolved = resolve(name)
    if resolved.is_gguf:  # the hub's cache holds links to files whose names say nothing
        return Path(resolved.source).absolute().name
    return Path(resolved.source).resolve().name if resolved.is_local and find_alias(name) is None else name


def bundled_model_folder() -> Path:
    """The folder of the bundled model inside the package. It may be missing in a checkout: see `is_bundled`."""
    return Path(__file__).parent / "bundled"


def is_bundled() -> bool:
    """Whether the bundled model is there."""
    return (bundled_model_folder() / "config.json").is_file()


def planted_heads(folder: Path | None = None) -> PlantedHeads:
    """The heads whose task is known, from `planted_heads.json` beside the bundled model's weights.

    Raises `ModelError` when the file is missing and `FileFormatError` when it is broken.
    """
    path = (folder or bundled_model_folder()) / PLANTED_HEADS_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"the bundled model has no {PLANTED_HEADS_FILE} ({path}); {REBUILD_HINT}") from error
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"not JSON: {str(error)[:200]}", path) from error
    return _read_planted(record, path)


def _read_planted(record: Any, path: Path) -> PlantedHeads:
    try:
        copying = tuple((int(layer), int(head)) for layer, head in record["copying"])
        heads = tuple(PlantedHead(int(h["layer"]), int(h["head"]), str(h["kind"])) for h in record["all"])
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        reason = 'expected {"copying": [[layer, head], ...], "all": [{"layer", "head", "kind"}, ...]}'
        raise FileFormatError(f"{reason}, stumbled over {shown(error)}", path) from error
    return PlantedHeads(copying, heads)
