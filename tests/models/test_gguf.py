from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from headprobe.errors import FileAccessError, ModelError
from headprobe.geometry import ModelGeometry
from headprobe.models import gguf_cache, gguf_conversion, gguf_file, hub, loading
from headprobe.models.catalog import CatalogEntry, ResolvedModel, resolve, short_name
from headprobe.models.gguf_cache import GgufOrigin, cache_folder, converted
from headprobe.models.gguf_conversion import gguf_folder, packaged_folder
from headprobe.models.gguf_file import read_gguf
from headprobe.models.hub import Carrier, installed_parts
from headprobe.models.loading import geometry_of, load_model
from tests.conftest import ROOT, CliResult
from tests.tiny_gguf import write_tiny_gguf
from tests.tiny_models import CHAT_TEMPLATE, WINDOW, build_tiny_model, tiny_model, tiny_tokenizer

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
pytest.importorskip("accelerate", reason="the package accelerate is not installed")

FULL = "full_attention"
TINY = ModelGeometry(2, 4, 2, 8, (FULL, FULL))
TEXT = "Where is the key? It's under 12 stones, näh."
RunCli = Callable[..., CliResult]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test converts anew."""
    monkeypatch.setenv("HEADPROBE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", chat_template=CHAT_TEMPLATE)


@pytest.fixture(scope="module")
def tiny_q8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.Q8_0.gguf", quantized=True)


@pytest.fixture
def own_tiny(tiny: Path, tmp_path: Path) -> Path:
    """One that the test may damage."""
    return Path(shutil.copy(tiny, tmp_path / "own.gguf"))


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(tiny_tokenizer()(TEXT, return_tensors="pt").input_ids).logits


# -- what is loaded -------------------------------------------------------------------------------------------------


def test_a_gguf_file_gives_the_model_that_was_written_into_it(tiny: Path, no_network) -> None:
    loaded = load_model(str(tiny), device="cpu")
    torch.testing.assert_close(logits(loaded.model), logits(tiny_model("llama")), rtol=0, atol=0)
    assert (loaded.geometry, loaded.window, loaded.dtype) == (TINY, WINDOW, "float32")
    assert (loaded.name, loaded.source, loaded.revision) == (str(tiny), str(tiny), None)
    assert loaded.architecture == "LlamaForCausalLM"


def test_the_tokenizer_comes_from_the_file(tiny: Path) -> None:
    written, loaded = tiny_tokenizer(), load_model(str(tiny), device="cpu").tokenizer
    assert loaded(TEXT).input_ids == written(TEXT).input_ids
    assert loaded(TEXT).input_ids[0] == written.bos_token_id
    special = (loaded.bos_token, loaded.eos_token, loaded.pad_token)
    assert special == (written.bos_token, written.eos_token, written.pad_token)
    said = [{"role": "user", "content": "Hi."}]
    assert loaded.apply_chat_template(said, tokenize=False) == "<s>[user] Hi.\n"


def test_quantized_weights_are_unpacked_to_the_last_bit(tiny_q8: Path) -> None:
    model = load_model(str(tiny_q8), device="cpu").model
    kind = gguf.GGMLQuantizationType.Q8_0
    original = tiny_model("llama").model.layers[1].mlp.gate_proj.weight
    expected = gguf.dequantize(gguf.quantize(original.detach().numpy(), kind), kind)
    assert torch.equal(model.model.layers[1].mlp.gate_proj.weight, torch.from_numpy(expected))
    assert not torch.equal(model.model.layers[1].mlp.gate_proj.weight, original)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_weights_are_those_that_transformers_loads_from_the_file(tiny_q8: Path, dtype: str) -> None:
    direct = transformers.AutoModelForCausalLM.from_pretrained(
        tiny_q8.parent, gguf_file=tiny_q8.name, dtype=getattr(torch, dtype),
        quantization_config=transformers.GgufConfig(dequantize=True),
    )  # fmt: skip
    ours = load_model(str(tiny_q8), device="cpu", dtype=dtype).model.state_dict()
    assert set(ours) == set(direct.state_dict())
    assert all(torch.equal(ours[name], weight) for name, weight in direct.state_dict().items())


def test_a_loaded_model_names_its_file_with_hash_and_types(tiny_q8: Path) -> None:
    loaded = load_model(str(tiny_q8), device="cpu")
    origin = GgufOrigin("tiny.Q8_0.gguf", read_gguf(tiny_q8).sha256, {"Q8_0": 14, "F32": 7})
    assert loaded.gguf == origin
    assert loaded.config_sha256 == origin.sha256
    assert origin.record() == {"file": origin.file, "sha256": origin.sha256, "types": {"Q8_0": 14, "F32": 7}}


def test_the_geometry_needs_no_conversion(tiny: Path, own_cache: Path) -> None:
    assert geometry_of(str(tiny)) == TINY
    assert not own_cache.exists()


def test_a_name_that_is_a_gguf_file_is_taken_as_one(tiny: Path, tmp_path: Path) -> None:
    blob = Path(shutil.copy(tiny, tmp_path / "sha256-1234"))  # as some programs keep theirs
    (tmp_path / "UPPER.GGUF").touch()
    (tmp_path / "demo").touch()
    assert resolve(str(blob)) == ResolvedModel(str(blob), str(blob), is_local=True, is_gguf=True)
    assert resolve("UPPER.GGUF").is_gguf
    assert short_name(str(tiny)) == "tiny.gguf"
    (tmp_path / "link.gguf").symlink_to(blob)
    assert short_name("link.gguf") == "link.gguf"
    with pytest.raises(ModelError, match="'no.gguf': there is no such GGUF file"):
        resolve("no.gguf")


def test_a_folder_with_nothing_but_a_gguf_file_says_to_name_the_file(tiny: Path) -> None:
    with pytest.raises(ModelError, match=r"no config.json in this folder, but tiny.gguf: name the file itself"):
        load_model(str(tiny.parent))


# -- what is refused ------------------------------------------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(str(path), device="cpu")
    assert not cache_folder().exists(), "it was refused after the work had begun"
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "begins"), [(b"", "b''"), (b"PK\x03\x04 a zip", r"b'PK\x03\x04'"), (b"GG", "b'GG'")]
)
def test_a_file_that_is_no_gguf_is_refused(content: bytes, begins: str) -> None:
    Path("no.gguf").write_bytes(content)
    assert refusal(Path("no.gguf")) == f"no.gguf is no GGUF file: it begins with {begins}, need b'GGUF'"


def test_a_pointer_of_git_is_refused() -> None:
    Path("no.gguf").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n")
    assert "is a Git LFS pointer" in refusal(Path("no.gguf"))


def test_a_file_without_its_last_byte_is_cut_off(own_tiny: Path) -> None:
    size = own_tiny.stat().st_size
    os.truncate(own_tiny, size - 1)
    told = refusal(own_tiny)
    assert f"is cut off: it has {size - 1} bytes, by its header {size}" in told


@pytest.mark.parametrize("length", [5, 20, 24, 31, 100, 500, 5000])
def test_a_file_that_ends_in_its_header_is_cut_off(own_tiny: Path, length: int) -> None:
    os.truncate(own_tiny, length)
    assert refusal(own_tiny).endswith(f"is cut off: its header goes on behind the last of its {length} bytes")


@pytest.mark.parametrize(
    ("at", "value", "told"),
    [
        (4, struct.pack("<I", 1), "a version 1 GGUF, need version 2 or 3, little-endian"),
        (4, struct.pack(">I", 3), "a big-endian GGUF, need version 2 or 3, little-endian"),
        (8, struct.pack("<Q", 2**62), f"broken: it has {2**62} tensors"),
        (8, struct.pack("<Q", 0), "holds no tensors"),
        (16, struct.pack("<Q", 2**62), f"broken: it has {2**62} entries"),
        (24, struct.pack("<Q", 2**63), "is cut off"),
        (32, b"\xff", "a text that is not UTF-8"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(own_tiny: Path, at: int, value: bytes, told: str) -> None:
    raw = bytearray(own_tiny.read_bytes())
    raw[at : at + len(value)] = value
    own_tiny.write_bytes(bytes(raw))
    assert told in refusal(own_tiny)


def test_no_damaged_header_ends_in_anything_but_our_errors(own_tiny: Path) -> None:
    raw = own_tiny.read_bytes()
    for place in range(4, 3000, 7):
        own_tiny.write_bytes(raw[:place] + bytes([raw[place] ^ 0xFF]) + raw[place + 1 :])
        with suppress(ModelError):
            assert read_gguf(own_tiny).num_elements > 0


def test_an_unknown_type_of_tensor_is_refused(own_tiny: Path) -> None:
    raw, name = own_tiny.read_bytes(), b"output_norm.weight"
    at = raw.index(name) + len(name) + 4 + 8  # one dimension, its length
    own_tiny.write_bytes(raw[:at] + struct.pack("<I", 250) + raw[at + 4 :])
    assert "tensor output_norm.weight is of the unknown type 250" in refusal(own_tiny)


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    told = refusal(write_tiny_gguf(tmp_path / "odd.gguf", architecture="rwkv6"))
    assert "cannot read a GGUF file of the architecture 'rwkv6'" in told


def test_an_architecture_without_attention_is_refused(tmp_path: Path) -> None:
    assert "odd.gguf" in refusal(write_tiny_gguf(tmp_path / "odd.gguf", architecture="mamba"))


def test_one_file_of_several_says_how_they_are_joined(own_tiny: Path, tmp_path: Path) -> None:
    part = own_tiny.rename(tmp_path / "big-00002-of-00003.gguf")
    told = refusal(part)
    assert "is one of 3 parts" in told
    assert "llama-gguf-split --merge big-00001-of-00003.gguf big.gguf" in told


def test_a_renamed_part_is_known_by_its_metadata(tmp_path: Path) -> None:
    assert "is one of 2 parts" in refusal(write_tiny_gguf(tmp_path / "a.gguf", metadata={"split.count": 2}))


def test_a_file_in_one_part_is_whole(tiny: Path, tmp_path: Path) -> None:
    assert read_gguf(Path(shutil.copy(tiny, tmp_path / "x-00001-of-00001.gguf"))).architecture == "llama"


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_missing_package_says_how_to_get_it(tiny: Path, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if package == "gguf":
        monkeypatch.setitem(sys.modules, "gguf", None)
    else:
        monkeypatch.setattr(gguf_conversion, "find_spec", lambda name: None if name == package else object())
    told = refusal(tiny)
    assert package in told
    assert told.endswith("pip install 'headprobe[gguf]'")


def test_a_disk_without_room_is_refused_before_the_work(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(FileAccessError, match=r"takes 0 MB once it is converted, .* has 0 MB left: name a roomier"):
        load_model(str(tiny))
    assert converted(read_gguf(tiny).sha256) is None


def test_a_cache_that_cannot_be_written_is_named(tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    monkeypatch.setenv("HEADPROBE_CACHE", str(tmp_path / "taken"))
    with pytest.raises(FileAccessError, match=r"cannot write into the cache .*taken"):
        load_model(str(tiny))


# -- the cache ------------------------------------------------------------------------------------------------------


def test_a_file_is_converted_once_and_its_size_is_said(
    tiny: Path, own_cache: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, origin = gguf_folder(tiny)
    first, second = capfd.readouterr().err.splitlines()
    assert folder == own_cache / origin.sha256
    assert first.startswith("headprobe: converting tiny.gguf (")
    assert f"tiny.gguf is kept as {folder} (" in second
    assert "`headprobe models --clean-cache` removes it" in second
    monkeypatch.setattr(gguf_conversion, "_convert", lambda file, folder: pytest.fail("converted again"))
    assert gguf_folder(Path(shutil.copy(tiny, "copy.gguf"))) == (folder, origin)
    assert capfd.readouterr() == ("", "")


def test_what_rescales_its_rotary_frequencies_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    gguf_folder(write_tiny_gguf(tmp_path / "a.gguf", metadata={"llama.rope.scaling.type": "yarn"}))
    assert (
        "a.gguf rescales its rotary frequencies, which transformers' GGUF reader leaves out" in capfd.readouterr().err
    )
    gguf_folder(write_tiny_gguf(tmp_path / "b.gguf", metadata={"llama.rope.scaling.type": "none"}))
    assert "rescales its" not in capfd.readouterr().err


def test_a_conversion_that_is_killed_leaves_nothing_that_is_used(tiny: Path, own_cache: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from headprobe.models import gguf_conversion\n"
        "def half(file, folder):\n"
        "    (folder / 'config.json').write_text('{')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "gguf_conversion._convert = half; gguf_conversion.gguf_folder(Path(sys.argv[1]))\n"
    )
    path = os.pathsep.join([str(ROOT), *sys.path])
    done = subprocess.run([sys.executable, "-c", script, str(tiny)], env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == -signal.SIGKILL
    assert len(list(own_cache.glob("*.tmp"))) == 1
    assert converted(read_gguf(tiny).sha256) is None
    folder, _ = gguf_folder(tiny)
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 2
    assert list(own_cache.glob("*.tmp")) == []


def test_a_conversion_that_fails_leaves_nothing(tiny: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: object, folder: Path) -> None:
        (folder / "config.json").write_text("{")
        raise ModelError("no")

    monkeypatch.setattr(gguf_conversion, "_convert", fail)
    with pytest.raises(ModelError, match="^no$"):
        gguf_folder(tiny)
    assert [path.suffix for path in own_cache.iterdir()] in ([".lock"], [])


def test_of_two_at_once_one_converts_and_the_other_waits(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    begun, go_on, real, conversions, found = threading.Event(), threading.Event(), gguf_conversion._convert, [], []

    def slow(file: Any, folder: Path) -> None:
        conversions.append(folder)
        begun.set()
        assert go_on.wait(60)
        real(file, folder)

    monkeypatch.setattr(gguf_conversion, "_convert", slow)
    both = [threading.Thread(target=lambda: found.append(gguf_folder(tiny))) for _ in range(2)]
    both[0].start()
    assert begun.wait(60)
    both[1].start()
    both[1].join(3)  # it cannot end
    assert both[1].is_alive()
    go_on.set()
    for thread in both:
        thread.join(60)
    assert len(conversions) == 1
    assert found[0] == found[1]
    assert "another process is converting tiny.gguf: waiting until it has ended" in capfd.readouterr().err


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HEADPROBE_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere/gguf")
    monkeypatch.setenv("HEADPROBE_CACHE", " ")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/headprobe/gguf")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/ada")
    assert cache_folder() == Path("/home/ada/.cache/headprobe/gguf")


def test_clean_cache_lists_what_it_removes(tiny: Path, own_cache: Path, cli: RunCli) -> None:
    folder, _ = gguf_folder(tiny)
    left = own_cache / f"{'0' * 64}.abc.tmp"
    left.mkdir()
    (left / "model.safetensors").write_bytes(bytes(100))
    size = sum(path.stat().st_size for path in folder.iterdir())
    result = cli("models", "--clean-cache", "--json")
    rows = json.loads(result.out)
    assert result.code == 0
    assert {"path": str(folder), "file": "tiny.gguf", "bytes": size, "removed": True} in rows
    assert {"path": str(left), "file": None, "bytes": 100, "removed": True} in rows
    assert list(own_cache.iterdir()) == []
    assert cli("models", "--clean-cache").out == f"nothing to remove in {own_cache}\n"


def test_clean_cache_leaves_what_is_none_of_ours(own_cache: Path, cli: RunCli) -> None:
    (own_cache / "my-models").mkdir(parents=True)
    (own_cache / "my-models" / "model.gguf").write_bytes(b"GGUF")
    (own_cache / ("a" * 64)).mkdir()  # no folder of ours: it does not say where it comes from
    (own_cache / "notes.tmp").touch()
    (own_cache / "apt.lock").touch()
    assert cli("models", "--clean-cache").out == f"nothing to remove in {own_cache}\n"
    assert len(list(own_cache.iterdir())) == 4


def test_clean_cache_leaves_what_another_process_is_writing(own_cache: Path, cli: RunCli) -> None:
    busy = own_cache / f"{'1' * 64}.abc.tmp"
    busy.mkdir(parents=True)
    with gguf_cache._hub.WeakFileLock(own_cache / f"{'1' * 64}.lock"):
        out = cli("models", "--clean-cache").out
    assert "is being written: left" in out
    assert out.endswith("\n0 bytes freed\n")
    assert busy.exists()


# -- score files, and commands --------------------------------------------------------------------------------------


def test_scores_of_a_gguf_file_say_which_it_was(tiny_q8: Path, cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headprobe.profiling.gathering.passed", lambda record, gate: True)  # it is a random model
    options = ("--lengths", "300", "--depths", "1", "--needles-per-cell", "2", "--no-chat-template")
    assert cli("score", "--model", tiny_q8, *options).code == 0
    path = Path("scores/tiny.Q8_0.gguf--r2.json")
    stated, sha256 = json.loads(path.read_text())["model"], read_gguf(tiny_q8).sha256
    assert stated["id"] == "tiny.Q8_0.gguf"
    assert stated["config_sha256"] == sha256
    assert stated["gguf"] == {"file": "tiny.Q8_0.gguf", "sha256": sha256, "types": {"Q8_0": 14, "F32": 7}}
    shown = cli("scores", "show", path).out
    assert f"tiny.Q8_0.gguf (Q8_0 14, F32 7), sha256 {sha256[:12]}" in shown
    assert json.loads(cli("scores", "show", path, "--json").out)["provenance"]["model"]["gguf"] == stated["gguf"]


def test_a_gguf_file_says_whose_heads_a_foreign_file_holds(tiny: Path, cli: RunCli) -> None:
    Path("foreign.json").write_text(json.dumps({f"{la}-{h}": [0.5, 0.25] for la in range(2) for h in range(4)}))
    result = cli("scores", "show", "foreign.json", "--model", tiny, "--json")
    assert json.loads(result.out)["num_key_value_heads"] == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("compress", "--policy", "snapkv", "--budget", "32", "--length", "300", "--max-new-tokens", "2"),
        ("norms", "--length", "300", "-o", "norms.png"),
        ("eval", "needles", *"--policies snapkv --budgets 32 --lengths 300 --depths 1 --needles-per-cell 1".split()),
    ],
)
def test_other_commands_take_a_gguf_file_too(tiny: Path, cli: RunCli, arguments: tuple[str, ...]) -> None:
    result = cli(*arguments, "--model", tiny, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)


# -- packages that carry weights ------------------------------------------------------------------------------------


def install(site: Path, package: str, files: dict[str, bytes]) -> None:
    """Lay out an installed package, as pip would."""
    about = site / f"{package.replace('-', '_')}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    for name, content in files.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_bytes(content)
    (about / "RECORD").write_text("".join(f"{name},,\n" for name in files))


@pytest.fixture
def carried(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CatalogEntry:
    """A model in two packages, whose alias is `toy`."""
    raw, site = tiny.read_bytes(), tmp_path / "site"
    half = len(raw) // 2
    install(site, "toy-part1", {"toy1/data/m.part00": raw[:100], "toy1/data/m.part01": raw[100:half], "toy1/x.py": b""})
    install(site, "toy-part2", {"toy2/data/m.part02": raw[half:]})
    monkeypatch.syspath_prepend(str(site))
    carrier = Carrier(("toy-part1", "toy-part2"), r"toy\d/data/m\.part\d+", "toy.gguf")
    entry = CatalogEntry("toy", "nobody/toy", 2, 4, 2, 8, WINDOW, "MIT")
    monkeypatch.setattr(hub, "CARRIERS", {"toy": carrier})
    monkeypatch.setattr("headprobe.models.catalog.CATALOG", (entry,))
    return entry


def test_packaged_parts_are_joined_in_order(carried: CatalogEntry, tiny: Path, own_cache: Path) -> None:
    parts = installed_parts("toy")
    assert parts is not None
    assert [path.name for path in parts.paths] == ["m.part00", "m.part01", "m.part02"]
    assert parts.sha256() == read_gguf(tiny).sha256
    folder, origin = packaged_folder(carried, parts)
    assert origin == GgufOrigin("toy.gguf", parts.sha256(), {"F32": 21}, "toy-part1 1.0 to toy-part2")
    assert {path.name for path in own_cache.iterdir()} - {f"{parts.sha256()}.lock"} == {folder.name}


def test_a_package_serves_where_the_hub_is_out_of_reach(
    carried: CatalogEntry, capfd: pytest.CaptureFixture[str], no_network
) -> None:
    loading._say_once.cache_clear()
    geometry_of("toy")
    loaded = load_model("toy", device="cpu")
    said, *others = capfd.readouterr().err.splitlines()
    assert not any("serves instead" in line for line in others)
    assert said.endswith("toy.gguf of the installed toy-part1 1.0 to toy-part2 serves instead")
    assert "HF_HUB_OFFLINE is set, so the hub is not contacted" in said
    assert (loaded.name, loaded.source, short_name("toy")) == ("toy", "nobody/toy", "toy")
    assert loaded.gguf is not None
    assert loaded.gguf.record()["packages"] == "toy-part1 1.0 to toy-part2"
    torch.testing.assert_close(logits(loaded.model), logits(tiny_model("llama")), rtol=0, atol=0)


def test_the_geometry_of_a_packaged_model_asks_the_hub_for_its_config_alone(
    carried: CatalogEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    tiny_model("llama").config.save_pretrained(tmp_path / "snapshot")
    fetch = lambda resolved, patterns: (asked.append(patterns), tmp_path / "snapshot")[1]  # noqa: E731
    monkeypatch.setattr("headprobe.models.loading.hub.fetch", fetch)
    assert geometry_of("toy") == TINY
    assert set(asked) == {("config.json",)}


def test_weights_on_the_hub_come_before_those_of_packages(
    carried: CatalogEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build_tiny_model("llama", tmp_path)
    monkeypatch.setattr("headprobe.models.loading.hub.fetch", lambda resolved, patterns: folder)
    assert load_model("toy", device="cpu").gguf is None


def test_a_missing_part_is_no_model(carried: CatalogEntry, tmp_path: Path) -> None:
    (tmp_path / "site" / "toy2/data/m.part02").unlink()
    assert installed_parts("toy") is None
    with pytest.raises(ModelError, match="model 'toy' is the hub's 'nobody/toy'"):
        load_model("toy")


def test_a_package_with_another_model_is_refused(carried: CatalogEntry) -> None:
    parts = installed_parts("toy")
    assert parts is not None
    other = CatalogEntry("toy", "nobody/toy", 30, 4, 2, 8, WINDOW, "MIT")
    with pytest.raises(ModelError, match=r"holds another model than toy: \[2, 4, 2\] are its num_hidden_layers"):
        packaged_folder(other, parts)


def test_every_carrier_is_of_a_model_in_the_catalog() -> None:
    assert all(resolve(alias).source.count("/") == 1 for alias in hub.CARRIERS)
    assert gguf_file.PART.search("x-00001-of-00003.gguf")
