"""A trained model as a file that NumPy reads: every tensor by its name."""

import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skerry_protos.errors import PeerError, SkerryError
from skerry_protos.records import read
from skerry_protos.tensors import DType, Tensor

from skerry_devices.client import Client, at

CHUNK = 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedModel:
    """What was saved."""

    tensors: int
    nbytes: int


class SaveError(SkerryError):
    """The model cannot be written where it should be."""

    code = "save"


def save_model(client: Client, run: str, path: Path) -> SavedModel:
    """Fetch a run's model and write it to `path`, completely or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".skerry-") as folder:
            records = Path(folder, "records")
            with records.open("wb") as file, client.download(at("runs", run, "model")) as answer:
                for chunk in answer.iter_bytes(CHUNK):
                    file.write(chunk)
            made = Path(folder, "model.npz")
            saved = write_npz(records, made)
            made.replace(path)
    except OSError as error:
        raise SaveError(
            f"cannot write {path}: {error.strerror or error}", hint="name another with --save"
        ) from error
    return saved


def write_npz(records: Path, path: Path) -> SavedModel:
    """Write the arrays of a records file as .npz, one tensor after the other."""
    groups = [group for group in read(records).arrays.values() if group]
    if not groups:
        raise PeerError("the model holds no arrays", hint="does the app return any?")
    tensors = {name: tensor for group in groups for name, tensor in group.items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, tensor in tensors.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, as_numpy(tensor), allow_pickle=False)
    return SavedModel(tensors=len(tensors), nbytes=path.stat().st_size)


def as_numpy(tensor: Tensor) -> NDArray[Any]:
    """Return a tensor as NumPy can keep it: the types it lacks as float32, without loss."""
    if tensor.stype:
        raise PeerError(f"the model has arrays serialised by the app itself ({tensor.stype})")
    bits = tensor.numpy()
    match tensor.dtype:
        case DType.BFLOAT16:
            return (bits.astype(np.uint32) << 16).view(np.float32)
        case DType.FLOAT8_E5M2:
            return (bits.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
        case DType.FLOAT8_E4M3FN:
            return np.asarray(E4M3FN[bits])
    return bits


def _e4m3fn() -> NDArray[np.float32]:
    """Return the 256 numbers that a float8 of 4 bits exponent (bias 7) and 3 bits fraction is."""
    bits = np.arange(256)
    exponent, fraction = (bits >> 3) & 15, (bits & 7) / 8
    size = np.where(exponent, 2.0 ** (exponent - 7) * (1 + fraction), 2.0**-6 * fraction)
    made = np.where(bits & 128, -size, size).astype(np.float32)
    made[[0x7F, 0xFF]] = np.nan
    return made


E4M3FN = _e4m3fn()


def how_to_load(path: Path) -> str:
    """Return the lines of Python that load the file."""
    return (
        f"load it with: import numpy, torch; arrays = numpy.load({str(path)!r})\n"
        "              model.load_state_dict({k: torch.from_numpy(v) for k, v in arrays.items()})"
    )
