"""Load a model with its tokenizer from an alias, a local folder or the hub, ready to be probed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import torch
import transformers

from headprobe.errors import DeviceMemoryError, ModelError
from headprobe.geometry import ModelGeometry
from headprobe.models import hub
from headprobe.models.catalog import (
    FOLDER_HINT,
    REBUILD_HINT,
    ResolvedModel,
    bundled_model_folder,
    find_alias,
    is_bundled,
    resolve,
)
from headprobe.models.config import check_generation_config, read_config, read_geometry, read_window, whole
from headprobe.models.devices import check_dtype, free_bytes, is_out_of_memory, pick_device, pick_dtype
from headprobe.models.files import broken_tokenizer_file, check_tokenizer_config, check_weight_files
from headprobe.models.gguf_cache import GgufOrigin, converted
from headprobe.models.gguf_conversion import gguf_folder, packaged_folder, read_gguf_config, say
from headprobe.models.gguf_file import ENDING as GGUF_ENDING
from headprobe.models.gguf_file import read_gguf
from headprobe.models.hub import installed_parts
from headprobe.models.memory import weights_nbytes
from headprobe.models.placement import Placement, bits_of, quantization_of, quantized_error
from headprobe.models.releases import quiet_transformers
from headprobe.models.weights import weights_fingerprint
from headprobe.stages import LOAD, stage

if TYPE_CHECKING:  # at run time each class is loaded when it is first used, which takes a second
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_TOKENIZER_FILES = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json")


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model in evaluation mode with all that a score file says about it.

    `name` is as given, `source` the folder, GGUF file or hub id behind it, `revision` the commit hash of a hub
    snapshot; `dtype` is torch's name without prefix ("float32"); `window` counts tokens. `gguf` says which GGUF file
    the weights were unpacked from, None for others; `config_sha256` is then that of this file, which holds the config.
    `quantization`: how the weights are held where they are quantized, with transformers' `quant_method`.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    geometry: ModelGeometry
    name: str
    source: str
    revision: str | None
    config_sha256: str
    tokenizer_sha256: str
    chat_template_sha256: str | None
    dtype: str
    device: torch.device
    window: int
    architecture: str
    gguf: GgufOrigin | None = None
    quantization: Mapping[str, Any] | None = None

    @property
    def attn_implementation(self) -> str:
        """Name of the attention function in use, as transformers calls it."""
        return str(self.model.config._attn_implementation)

    @cached_property
    def weights_sha256(self) -> str:
        """See `weights_fingerprint`; empty for a model that was loaded without weights."""
        return "" if self.model.device.type == "meta" else weights_fingerprint(self.model)


class PlacementOptions(TypedDict, total=False):
    """The fields of `Placement` as keywords."""

    tensor_parallel: bool
    device_map: str | Mapping[str, Any] | None
    quantization: str | None
    empty: bool


@stage(LOAD)
def load_model(
    name: str,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    **placement: Unpack[PlacementOptions],
) -> LoadedModel:
    """Load the model called `name` (alias, folder, GGUF file or hub id).

    A GGUF file is converted the first time, which takes minutes and is said on stderr (`headprobe.models.gguf_cache`).

    `device` "auto" is CUDA where there is one, else the CPU; `dtype` "auto" is float32 on a CPU and elsewhere the
    half precision that the config names, else bfloat16. Gradients are switched off. `placement`: the fields of
    `Placement`: `tensor_parallel`, `device_map`, `quantization`.
    Raises `ModelError` (unknown, broken, no decoder), `OptionError` (device, dtype) and `DeviceMemoryError`.
    """
    target, how = pick_device(device), Placement(**placement)
    check_dtype(dtype)
    resolved = resolve(name)
    held = _gguf(resolved, hub.MODEL_FILES)
    if held is not None:
        folder, gguf = held
        config = read_config(folder)
    else:
        gguf = None
        config = read_config(_folder(resolved, hub.CONFIG_FILES), trust_remote_code=trust_remote_code)
        wanted = hub.PLAN_FILES if how.empty else hub.MODEL_FILES
        folder = _folder(resolved, wanted + (hub.CODE_FILES if trust_remote_code else ()))
    geometry = read_geometry(config, folder)
    check_generation_config(folder)
    tokenizer = _load_tokenizer(folder, trust_remote_code)
    window = read_window(config, tokenizer, folder)
    chosen = pick_dtype(dtype, target, config)
    how.check(geometry, target, config, folder)
    options = _options(config, chosen, trust_remote_code, attn_implementation)
    if how.empty:
        model = _empty_model(folder, options)
    else:
        if gguf is None:
            _fetch_pickled_weights(resolved, folder)
        check_weight_files(folder)
        model = _load_weights(folder, options | how.options(target), target, moves=not how.is_placed)
    loaded = LoadedModel(
        model=model,
        tokenizer=tokenizer,
        geometry=geometry,
        name=name,
        source=resolved.source,
        revision=hub.revision_of(folder),
        config_sha256=_sha256((folder / "config.json").read_bytes()) if gguf is None else gguf.sha256,
        tokenizer_sha256=_tokenizer_sha256(folder, tokenizer),
        chat_template_sha256=_template_sha256(tokenizer.chat_template),
        dtype=chosen,
        device=model.device if how.is_placed and not how.empty else target,
        window=window,
        architecture=type(model).__name__,
        gguf=gguf,
        quantization=_quantization(model, how),
    )
    if how.tensor_parallel:
        assert loaded.weights_sha256  # all processes take part in it, and will not always ask at the same time
    return loaded


def load_to_plan(
    name: str, device: str = "auto", dtype: str = "auto", **placement: Unpack[PlacementOptions]
) -> LoadedModel:
    """The model called `name` where its weights fit on the device; otherwise without any (`Placement.empty`), so that
    what it would need can be said. Raises as `load_model`."""
    options: PlacementOptions = {**placement, "empty": True}
    planned = load_model(name, device=device, dtype=dtype, **options)
    free = free_bytes(planned.device)
    weights = weights_nbytes(planned.model.config, planned.dtype, bits_of(planned.quantization))
    if free is not None and weights > free and placement.get("device_map") is None:
        return planned
    return load_model(name, device=device, dtype=dtype, **placement)


def _quantization(model: PreTrainedModel, how: Placement) -> dict[str, Any] | None:
    if how.empty and how.quantization is not None:
        return {"quant_method": how.quantization}
    return quantization_of(model.config) if getattr(model, "hf_quantizer", None) is not None else None


def geometry_of(name: str, trust_remote_code: bool = False) -> ModelGeometry:
    """The geometry of the model called `name`, from its config alone: no weights are loaded or downloaded.

    Raises `ModelError` as `load_model` does.
    """
    resolved = resolve(name)
    if resolved.is_gguf:
        return _gguf_geometry(Path(resolved.source))
    held = _gguf(resolved, hub.CONFIG_FILES)
    folder = _folder(resolved, hub.CONFIG_FILES) if held is None else held[0]
    return read_geometry(read_config(folder, trust_remote_code=trust_remote_code), folder)


# -- files ----------------------------------------------------------------------------------------------------------


def _gguf(resolved: ResolvedModel, patterns: tuple[str, ...]) -> tuple[Path, GgufOrigin] | None:
    """The converted folder of a GGUF file: the one that is named, or one that installed packages carry while the hub,
    which comes first, has no files of these `patterns` to give. None for all other models."""
    if resolved.is_gguf:
        return gguf_folder(Path(resolved.source))
    entry = None if resolved.is_local else find_alias(resolved.name)
    parts = None if entry is None else installed_parts(entry.alias)
    if entry is None or parts is None:
        return None
    try:
        folder = hub.fetch(resolved, patterns)
        if patterns is hub.CONFIG_FILES or any(folder.glob("*.safetensors")):
            return None
        reason = "its weights are not in the hub's cache"
    except ModelError as error:
        reason = str(error).split(f"; {FOLDER_HINT}")[0]
    _say_once(f"{reason}: {parts.file} of the installed {parts.packages} serves instead")
    return packaged_folder(entry, parts)


@cache
def _say_once(remark: str) -> None:
    """For what is looked up several times in one command: for the config of each score file, then for the weights."""
    say(remark)


def _gguf_geometry(path: Path) -> ModelGeometry:
    """The geometry of a GGUF file, which need not be converted for it."""
    file = read_gguf(path)
    there = converted(file.sha256)
    if there is not None:
        return read_geometry(read_config(there[0]), path)
    return read_geometry(read_gguf_config(file), path)


def _folder(resolved: ResolvedModel, patterns: tuple[str, ...]) -> Path:
    """The local folder of a model, with the files of `patterns` downloaded where it comes from the hub."""
    if not resolved.is_local:
        return hub.fetch(resolved, patterns)
    folder = Path(resolved.source)
    others = sorted(folder.glob(f"*{GGUF_ENDING}"))
    if others and not (folder / "config.json").exists():
        raise ModelError(f"{folder}: no config.json in this folder, but {others[0].name}: name the file itself")
    if folder == bundled_model_folder() and not is_bundled():
        raise ModelError(f"the bundled model is missing from {folder}; {REBUILD_HINT}")
    return folder


def _fetch_pickled_weights(resolved: ResolvedModel, folder: Path) -> None:
    """Older repositories have no safetensors; transformers opens their files with `weights_only`."""
    if not resolved.is_local and not any(folder.glob("*.safetensors")):
        hub.fetch(resolved, hub.PICKLED_WEIGHTS)


def _stays_local(trust_remote_code: bool) -> bool:
    """All files are on disk by now; only code of a model's own may still have to come from another repository."""
    return hub.is_offline() or not trust_remote_code


def _load_tokenizer(folder: Path, trust_remote_code: bool) -> PreTrainedTokenizerFast:
    if not any(any(folder.glob(pattern)) for pattern in _TOKENIZER_FILES):
        raise ModelError(f"{folder}: no tokenizer in this folder (tokenizer.json is missing)")
    check_tokenizer_config(folder)
    try:
        with quiet_transformers():
            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
                folder, trust_remote_code=trust_remote_code, local_files_only=_stays_local(trust_remote_code)
            )
    except Exception as error:
        reason = broken_tokenizer_file(folder) or whole(error)
        raise ModelError(f"{folder}: broken tokenizer: {reason}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"{folder}: {type(tokenizer).__name__} is not a fast tokenizer, so it gives no exact spans")
    return tokenizer


def _options(config: Any, dtype: str, trust_remote_code: bool, attn: str | None) -> dict[str, Any]:
    """Keywords for transformers' `from_pretrained`."""
    options: dict[str, Any] = {"config": config, "dtype": getattr(torch, dtype), "output_loading_info": True}
    options |= {"trust_remote_code": trust_remote_code, "local_files_only": _stays_local(trust_remote_code)}
    return options if attn is None else options | {"attn_implementation": attn}


def _empty_model(folder: Path, options: dict[str, Any]) -> PreTrainedModel:
    """The model without its weights, on the device "meta"."""
    given = {name: value for name, value in options.items() if name in ("dtype", "attn_implementation")}
    try:
        with quiet_transformers(), torch.device("meta"):
            model: Any = transformers.AutoModelForCausalLM.from_config(options["config"], **given)
    except Exception as error:
        raise ModelError(f"{folder}: the model cannot be built from its config.json: {whole(error)}") from error
    empty: PreTrainedModel = model.eval().requires_grad_(False)
    return empty


def _load_weights(folder: Path, options: dict[str, Any], device: torch.device, *, moves: bool) -> PreTrainedModel:
    try:
        with quiet_transformers():
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
            model, info = loaded
            _check_complete(folder, info)
            if moves and "quantization_config" not in options:
                model = model.to(device)
    except ModelError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            dtype = str(options["dtype"]).removeprefix("torch.")
            raise DeviceMemoryError(_memory_message(folder, device, dtype)) from error
        if "ignore_mismatched_sizes" in str(error):
            _name_mismatch(folder, options)
        quantized = quantized_error(folder, options["config"], device, error)
        if quantized is not None:
            raise quantized from error
        raise ModelError(f"{folder}: the weights cannot be loaded: {whole(error)}") from error
    return model.eval().requires_grad_(False)


def _check_complete(folder: Path, info: dict[str, Any]) -> None:
    """transformers fills gaps with random numbers and only warns; here a gap is an error."""
    names = sorted(str(name) for name in info.get("missing_keys") or ())
    if names:
        raise ModelError(f"{folder}: {len(names)} weight(s) missing, for example {names[0]}")
    wrong = sorted(info.get("mismatched_keys") or ())
    if wrong:
        name, held, wanted = wrong[0]
        shapes = f"{name} is {_shape(held)} in the file and {_shape(wanted)} by config.json"
        others = f" ({len(wrong) - 1} more weight(s) differ)" if len(wrong) > 1 else ""
        raise ModelError(f"{folder}: the weights do not have the shapes that config.json states: {shapes}{others}")


def _name_mismatch(folder: Path, options: dict[str, Any]) -> None:
    """Raise `ModelError` that names a weight of another shape: transformers only logs them, unless it may go on."""
    try:
        with quiet_transformers():
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                folder, **options, ignore_mismatched_sizes=True
            )
            _check_complete(folder, loaded[1])
    except ModelError:
        raise
    except Exception as error:  # the shapes of the config may be beyond all memory
        raise ModelError(f"{folder}: weights do not have the shapes that config.json states") from error


def _shape(sizes: Any) -> str:
    return " x ".join(str(size) for size in sizes) or "a single number"


def _memory_message(folder: Path, device: torch.device, dtype: str) -> str:
    stored = sum(file.stat().st_size for file in folder.iterdir() if file.suffix in {".safetensors", ".bin"})
    room = f", {torch.cuda.mem_get_info(device)[0] / 2**30:.1f} GiB are free" if device.type == "cuda" else ""
    advice = "take --dtype bfloat16" if dtype == "float32" else "take --device cpu"
    what = f"{stored / 2**30:.1f} GiB of weight files do not fit on {device} as {dtype}{room}"
    return f"{folder}: {what}; {advice}, or a smaller model"


# -- fingerprints ---------------------------------------------------------------------------------------------------


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _tokenizer_sha256(folder: Path, tokenizer: PreTrainedTokenizerFast) -> str:
    path = folder / "tokenizer.json"
    return _sha256(path.read_bytes() if path.is_file() else tokenizer.backend_tokenizer.to_str().encode())


def _template_sha256(template: Any) -> str | None:
    if not template:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return _sha256(text.encode())
