"""Models as files: every tensor by its name, exactly, also of types that NumPy lacks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from skerry_devices.models import write_npz
from skerry_protos.errors import PeerError
from skerry_protos.records import Records, write
from skerry_protos.tensors import DType, Tensor
from skerry_protos.weights import tensors_of


def npz_of(tmp_path: Path, tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    write(Records(arrays={"arrays": tensors}), tmp_path / "records")
    saved = write_npz(tmp_path / "records", tmp_path / "model.npz")
    assert saved.tensors == len(tensors)
    with np.load(tmp_path / "model.npz", allow_pickle=False) as found:
        return dict(found)


def test_a_torch_model_comes_back_as_it_was(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    arrays = npz_of(tmp_path, tensors_of(model))
    again = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    again.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (torch.bfloat16, DType.BFLOAT16),
        (torch.float8_e4m3fn, DType.FLOAT8_E4M3FN),
        (torch.float8_e5m2, DType.FLOAT8_E5M2),
    ],
)
def test_types_that_numpy_lacks_become_float32_without_loss(
    tmp_path: Path, kind: torch.dtype, dtype: DType
) -> None:
    size = 2 if dtype is DType.BFLOAT16 else 1
    every = np.arange(2 ** (8 * size), dtype=f"<u{size}")
    arrays = npz_of(tmp_path, {"w": Tensor.of_bits(dtype, every)})
    expected = torch.from_numpy(every.view(f"<i{size}")).view(kind).to(torch.float32).numpy()
    np.testing.assert_array_equal(arrays["w"], expected)


def test_a_model_without_arrays_is_refused(tmp_path: Path) -> None:
    write(Records(), tmp_path / "records")
    with pytest.raises(PeerError, match="no arrays"):
        write_npz(tmp_path / "records", tmp_path / "model.npz")
