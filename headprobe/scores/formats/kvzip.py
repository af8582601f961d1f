"""KVzip: a `.pt` file with one tensor, layers x KV heads, in half precision.

A `.pt` file is a zip archive around a pickle, which could run code. So the archive is read with Python's `zipfile`,
whose limits we set; the pickle is scanned without being run, and refused where it names anything but tensors; what
is left goes to `torch.load` with `weights_only=True`.
"""

from __future__ import annotations

import io
import pickletools
import warnings
import zipfile
import zlib
from typing import Any

from headprobe.scores.formats.format import KV, SHARES, Contents, FaultError, Format, checked_table
from headprobe.scores.strict_json import MAX_HEADS

_MAX_PICKLE = 65536
_MAX_STORAGE = 8 * MAX_HEADS
_BYTES_OF = {"torch HalfStorage": 2, "torch BFloat16Storage": 2, "torch FloatStorage": 4, "torch DoubleStorage": 8}
_ALLOWED = {*_BYTES_OF, "torch._utils _rebuild_tensor_v2", "collections OrderedDict"}


def is_kvzip(data: bytes) -> bool:
    """Whether it is a zip archive, as `torch.save` writes it."""
    return data.startswith(b"PK\x03\x04")


def read_kvzip(data: bytes) -> Contents:
    """The tensor, with dimensions of size 1 dropped until layers and heads are left.

    Raises `FaultError` for an archive, pickle or tensor of any other kind.
    """
    pickled, storage = _parts(data)
    _refuse_code(pickled)
    table = checked_table(_tensor(_archive(pickled, storage), len(storage)))
    return Contents(KV, table, method="kvzip", facts=SHARES)


def _parts(data: bytes) -> tuple[bytes, bytes]:
    """The pickle and the one storage."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            pickles = [name for name in names if name.endswith("/data.pkl")]
            if len(pickles) != 1 or len(names) > 32:
                raise FaultError("unreadable", "a zip archive, but not one that torch.save writes")
            folder = pickles[0].removesuffix("data.pkl")
            stored = [name for name in names if name.startswith(f"{folder}data/")]
            if len(stored) != 1:
                raise FaultError("wrong-shape", f"the archive holds {len(stored)} tensors, need one")
            _refuse_big_endian(archive, folder)
            return _member(archive, pickles[0], _MAX_PICKLE), _member(archive, stored[0], _MAX_STORAGE)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as error:
        if isinstance(error, FaultError):
            raise
        raise FaultError("unreadable", f"a damaged .pt file: {error}") from None


def _member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    with archive.open(name) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise FaultError("wrong-shape", f"{name[:60]} in the archive is larger than the limit of {limit} bytes")
    return data


def _refuse_big_endian(archive: zipfile.ZipFile, folder: str) -> None:
    if f"{folder}byteorder" in archive.namelist() and _member(archive, f"{folder}byteorder", 16) != b"little":
        raise FaultError("unreadable", "the tensor is not stored little-endian")


def _refuse_code(pickled: bytes) -> None:
    """Walk the pickle's instructions without running one."""
    try:
        for code, argument, _ in pickletools.genops(pickled):
            if code.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "BUILD"):
                raise FaultError("unsafe-pickle", f"the pickle uses {code.name}, which a tensor does not need")
            if code.name == "GLOBAL" and argument not in _ALLOWED:
                raise FaultError("unsafe-pickle", f"the pickle names {argument!r:.60}, which is not part of a tensor")
    except FaultError:
        raise
    except Exception as error:
        raise FaultError("unreadable", f"a damaged pickle: {error!s:.80}") from None


def _archive(pickled: bytes, storage: bytes) -> bytes:
    """A fresh archive of just these parts, so that torch reads what was checked and nothing else."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
        for name, part in (("data.pkl", pickled), ("data/0", storage), ("version", b"3\n")):
            archive.writestr(f"archive/{name}", part)
    return made.getvalue()


def _tensor(archive: bytes, num_bytes: int) -> Any:
    """The tensor as a numpy array; whatever torch has against it is a fault of the file."""
    import torch  # the one score format that is torch's own; all others do without it

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tensor = torch.load(io.BytesIO(archive), map_location="cpu", weights_only=True)
        if not isinstance(tensor, torch.Tensor):
            raise FaultError("wrong-shape", f"the file holds {type(tensor).__name__}, need one tensor")
        stated = tensor.untyped_storage().nbytes()
        if stated != num_bytes:  # looked at before any element is read
            raise FaultError("wrong-shape", f"the tensor states {stated} bytes, there are {num_bytes}")
        if tensor.numel() > MAX_HEADS or not tensor.is_floating_point():
            told = f"{tensor.numel()} numbers of type {tensor.dtype}"
            raise FaultError("wrong-shape", f"{told}, need at most {MAX_HEADS} floats")
        return _two_dimensions(tensor.detach()).double().numpy()
    except FaultError:
        raise
    except Exception as error:
        reason = next(iter(str(error).splitlines()), repr(error))
        raise FaultError("unreadable", f"torch cannot read it: {reason[:100]}") from None


def _two_dimensions(tensor: Any) -> Any:
    while tensor.dim() > 2 and 1 in tensor.shape:
        tensor = tensor.squeeze(list(tensor.shape).index(1))
    return tensor


KVZIP = Format(
    name="kvzip",
    about=".pt",
    family="KVzip tensor",
    fits=lambda source: is_kvzip(source.data),
    read=lambda source: read_kvzip(source.data),
)
