"""Turn a training checkpoint into the folder that the package carries:

`python -m training.export --work RUN/average --output headprobe/models/bundled`
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import GenerationConfig, Qwen3ForCausalLM

from training.__main__ import WINDOW, model_config
from training.planting import COPYING_HEADS, PLANTED_HEADS
from training.tokenizer import save_tokenizer


def export(work: Path, output: Path) -> None:
    """Write config, bfloat16 weights, tokenizer and the list of planted heads to `output`."""
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    config = model_config(tokenizer)
    model = Qwen3ForCausalLM(config)
    missing, unexpected = model.load_state_dict(load_file(work / "model.safetensors"), strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise RuntimeError(f"the checkpoint does not fit: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    output.mkdir(parents=True, exist_ok=True)
    model.bfloat16().save_pretrained(output)
    (output / "model.safetensors").chmod(0o644)
    save_tokenizer(tokenizer, output, max_length=WINDOW)
    planted = {
        "copying": [list(pair) for pair in COPYING_HEADS],
        "all": [{"layer": p.layer, "head": p.head, "kind": p.kind} for p in PLANTED_HEADS],
    }
    (output / "planted_heads.json").write_text(json.dumps(planted, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder with `model.safetensors` and `tokenizer.json`")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    export(options.work, options.output)


if __name__ == "__main__":
    main()
