"""Codecs: what comes back, what is kept for the next round, and that chance has no bias."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from skerry_protos import codecs
from skerry_protos.codecs import (
    BROADCASTS,
    FEEDBACK,
    NAMES,
    Codec,
    CodecError,
    installed,
    packing,
    parse_broadcast,
    quantized,
    sparse,
)
from skerry_protos.codecs.floats import LOSSY
from skerry_protos.codecs.methods import code
from skerry_protos.codecs.updates import (
    Feedback,
    alike,
    decode_model,
    decode_update,
    encode_model,
    encode_update,
    is_coded,
)
from skerry_protos.errors import ConfigError
from skerry_protos.tensors import DType, Tensor

CODERS = NAMES[1:]
LOSING = tuple(name for name in CODERS if Codec(name=name).lossy)
CODES = sorted({dtype.numpy_code for dtype in DType})
SHAPES = {"conv": (16, 3, 5, 5), "dense": (40, 300), "bias": (40,), "scalar": (), "none": (0, 7)}

Arrays = dict[str, NDArray[Any]]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def model(seed: int = 0) -> Arrays:
    """Return the weights of a small network, with a counter, a flag and odd types."""
    dice = rng(seed)
    made: Arrays = {
        name: (dice.standard_normal(shape) * 0.1).astype(np.float32)
        for name, shape in SHAPES.items()
    }
    made["counter"] = np.array(7 + seed, dtype=np.int64)
    made["flags"] = dice.random(9) > 0.5
    made["half"] = (dice.standard_normal((20, 30)) * 0.1).astype(np.float16)
    made["wide"] = dice.standard_normal((20, 30)) * 0.1
    made["turned"] = (dice.standard_normal((30, 20)) * 0.1).astype(np.float32).T
    return made


def trained_from(arrays: Arrays, seed: int) -> Arrays:
    """Return the weights after a little training."""
    dice = rng(1000 + seed)
    return {
        name: (array + (dice.standard_normal(array.shape) * 0.01)).astype(array.dtype)
        if array.dtype.kind == "f"
        else (array + 3 if array.dtype.kind == "i" else array)
        for name, array in arrays.items()
    }


def tensors(arrays: Arrays) -> dict[str, Tensor]:
    return {name: Tensor.of(np.asarray(array)) for name, array in arrays.items()}


def there_and_back(
    name: str, received: Arrays, trained: Arrays, **options: Any
) -> dict[str, Tensor]:
    coded, _ = encode_update(
        Codec(name=name), tensors(received), tensors(trained), Feedback(), rng(1), **options
    )
    return dict(decode_update(coded, tensors(received)))


# Round trips.


@pytest.mark.parametrize("name", CODERS)
def test_an_update_comes_back_in_its_types_and_shapes(name: str) -> None:
    received = model()
    trained = trained_from(received, 1)
    back = there_and_back(name, received, trained)
    assert alike(tensors(trained), back)
    for exactly in ("counter", "flags"):
        assert np.array_equal(back[exactly].numpy(), trained[exactly]), exactly


@pytest.mark.parametrize(("name", "error"), [("bf16", 0.005), ("int8", 0.02), ("int4", 0.3)])
def test_what_comes_back_is_near(name: str, error: float) -> None:
    received = model()
    trained = trained_from(received, 1)
    back = there_and_back(name, received, trained)
    for key in ("conv", "dense", "bias", "wide", "turned"):
        moved = np.linalg.norm(trained[key] - received[key])
        assert np.linalg.norm(back[key].numpy() - trained[key]) < error * moved, key


@given(
    old=hnp.arrays(
        dtype=st.sampled_from(CODES).map(np.dtype),
        shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6),
    ),
    data=st.data(),
)
def test_lossless_is_bit_exact_for_every_type_and_shape(
    old: NDArray[Any], data: st.DataObject
) -> None:
    new = data.draw(hnp.arrays(dtype=old.dtype, shape=old.shape))
    back = there_and_back("lossless", {"w": old}, {"w": new})["w"]
    assert back.numpy().tobytes() == Tensor.of(new).numpy().tobytes()


@given(
    bits=hnp.arrays(np.uint16, hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=9)),
    dtype=st.sampled_from([DType.BFLOAT16, DType.FLOAT8_E4M3FN, DType.FLOAT8_E5M2]),
)
def test_types_that_numpy_lacks_come_back_bit_exact(bits: NDArray[Any], dtype: DType) -> None:
    tensor = Tensor.of_bits(dtype, bits.astype(dtype.numpy_code))
    coded, _ = encode_update(
        Codec(name="lossless"), {"w": tensor}, {"w": tensor}, Feedback(), rng()
    )
    [(_, back)] = decode_update(coded, {"w": tensor})
    assert (back.dtype, back.data) == (dtype, tensor.data)


floats = st.floats(-1e3, 1e3, width=32)


@settings(max_examples=60)
@given(
    old=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=40),
        elements=floats,
        fill=floats,
    ),
    dtype=st.sampled_from(["<f2", "<f4", "<f8"]),
    name=st.sampled_from(LOSING),
    data=st.data(),
)
def test_every_codec_takes_every_float_and_shape(
    old: NDArray[Any], dtype: str, name: str, data: st.DataObject
) -> None:
    step = data.draw(hnp.arrays(np.float32, old.shape, elements=floats, fill=floats))
    held, new = old.astype(dtype), (old + step).astype(dtype)
    back = there_and_back(name, {"w": held}, {"w": new})["w"]
    assert (back.dtype, back.shape) == (Tensor.of(new).dtype, new.shape)
    assert back.finite()


def test_an_opaque_tensor_is_kept_as_it_is() -> None:
    old = Tensor.opaque(b"abcd" * 100, "pickle", "object", (3,))
    new = Tensor.opaque(b"abce" * 100, "pickle", "object", (3,))
    coded, _ = encode_update(Codec(name="int8"), {"w": old}, {"w": new}, Feedback(), rng())
    [(_, back)] = decode_update(coded, {"w": old})
    assert (back.stype, back.stype_dtype, back.stype_shape) == ("pickle", "object", (3,))
    assert back.data == new.data


@pytest.mark.parametrize("name", CODERS)
def test_arrays_that_do_not_lie_in_order_are_taken(name: str) -> None:
    table = np.arange(1200, dtype=np.float32).reshape(30, 40)
    received, trained = {"w": table.T[::2]}, {"w": (table * 1.01).T[::2]}
    back = there_and_back(name, received, trained)["w"].numpy()
    copied = there_and_back(name, {"w": received["w"].copy()}, {"w": trained["w"].copy()})[
        "w"
    ].numpy()
    assert np.array_equal(back, copied)


# What cannot be coded.


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2e38])
@pytest.mark.parametrize("name", LOSING)
def test_what_is_not_finite_is_refused(name: str, bad: float) -> None:
    change = np.ones(600, np.float32)
    change[17] = bad
    with pytest.raises(CodecError, match="NaN, infinity"):
        code(Codec(name=name), change, (20, 30), rng=rng())


@pytest.mark.parametrize("name", LOSING)
def test_an_update_that_is_not_finite_crosses_as_it_is_and_spoils_no_feedback(name: str) -> None:
    received = {"good": np.ones((20, 30), np.float32), "bad": np.ones((20, 30), np.float32)}
    trained = {"good": received["good"] * 1.1, "bad": np.full((20, 30), np.nan, np.float32)}
    kept = Feedback(residual={"bad": np.full(600, 0.5, np.float32)})
    coded, after = encode_update(Codec(name=name), tensors(received), tensors(trained), kept, rng())
    back = dict(decode_update(coded, tensors(received)))
    assert np.isnan(back["bad"].numpy()).all()
    assert back["good"].finite()
    assert all(np.isfinite(one).all() for one in after.residual.values())
    if name in FEEDBACK:
        assert np.array_equal(after.residual["bad"], kept.residual["bad"])


def test_arrays_unlike_those_received_are_not_coded() -> None:
    with pytest.raises(CodecError, match="not like"):
        there_and_back("int8", {"w": np.ones(3)}, {"w": np.ones(4)})


# Chance without bias.


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_stochastic_rounding_has_no_bias(name: str) -> None:
    change = (rng(3).standard_normal((8, 100)) * 0.01).astype(np.float32)
    zero, dice, times = np.zeros_like(change), rng(4), 400
    total = np.zeros(change.shape)
    for _ in range(times):
        coded, _ = encode_update(
            Codec(name=name), tensors({"w": zero}), tensors({"w": change}), Feedback(), dice
        )
        total += dict(decode_update(coded, tensors({"w": zero})))["w"].numpy()
    levels = quantized.LEVELS[8 if name == "int8" else 4]
    step = np.abs(change).max() / levels
    # An element's variance is at most step^2 / 4; 5 sigma of a mean of so many.
    assert np.abs(total / times - change).max() < 5 * step / 2 / np.sqrt(times)
    assert abs((total / times - change).mean()) < 5 * step / 2 / np.sqrt(times * change.size)


def test_the_same_dice_give_the_same_bytes() -> None:
    received, trained = tensors(model()), tensors(trained_from(model(), 1))
    for name in CODERS:
        one, two = (
            encode_update(Codec(name=name), received, trained, Feedback(), rng(5))[0]
            for _ in range(2)
        )
        assert one.data == two.data, name


@given(
    shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=50),
    block=st.integers(16, 300),
)
def test_blocks_cover_a_tensor_and_do_not_cross_long_channels(
    shape: tuple[int, ...], block: int
) -> None:
    begins, size = quantized.starts(shape, block), int(np.prod(shape))
    assert begins.size == quantized.blocks(shape, size, block)
    if not size:
        return
    lengths = np.diff(begins, append=size)
    assert (begins[0], lengths.sum(), lengths.min() > 0) == (0, size, True)
    assert lengths.max() <= block
    width = size // shape[0] if len(shape) > 1 else size
    if width >= quantized.SHORT:
        assert np.array_equal(begins // width, (begins + lengths - 1) // width)


# Error feedback.


@pytest.mark.parametrize("name", sorted(FEEDBACK))
def test_what_was_sent_and_what_is_kept_are_what_was_learned(name: str) -> None:
    received, feedback = model(), Feedback()
    sent = {key: np.zeros(array.shape) for key, array in received.items()}
    learned = {key: np.zeros(array.shape) for key, array in received.items()}
    for number in range(12):
        trained = trained_from(received, number)
        coded, feedback = encode_update(
            Codec(name=name), tensors(received), tensors(trained), feedback, rng(number)
        )
        feedback = Feedback.from_records(feedback.to_records())
        back = dict(decode_update(coded, tensors(received)))
        for key in ("conv", "dense", "bias"):
            sent[key] += back[key].numpy().astype(float) - received[key]
            learned[key] += trained[key].astype(float) - received[key]
    for key in ("conv", "dense", "bias"):
        kept = feedback.residual[key].reshape(received[key].shape)
        assert np.allclose(sent[key] + kept, learned[key], atol=1e-5), key
        assert key != "dense" or np.abs(kept).max() > 1e-3


@pytest.mark.parametrize("name", sorted(FEEDBACK))
def test_a_steady_update_is_sent_whole_in_the_end(name: str) -> None:
    """Without feedback the small elements would never cross."""
    step = (rng(8).standard_normal((40, 60)) * 0.01).astype(np.float32)
    zero, feedback, total = np.zeros_like(step), Feedback(), np.zeros(step.shape)
    rounds = 400
    for number in range(rounds):
        coded, feedback = encode_update(
            Codec(name=name, ratio=0.02, rank=2),
            tensors({"w": zero}),
            tensors({"w": step}),
            feedback,
            rng(number),
        )
        total += dict(decode_update(coded, tensors({"w": zero})))["w"].numpy()
    assert np.linalg.norm(total / rounds - step) < 0.25 * np.linalg.norm(step)


def test_powersgd_finds_a_matrix_of_its_rank() -> None:
    dice = rng(2)
    low = (dice.standard_normal((60, 3)) @ dice.standard_normal((3, 80))).astype(np.float32)
    zero, feedback = tensors({"w": np.zeros_like(low)}), Feedback()
    for _ in range(3):
        coded, feedback = encode_update(
            Codec(name="powersgd"), zero, tensors({"w": low}), feedback, dice
        )
        feedback = Feedback(warm=feedback.warm)
    back = dict(decode_update(coded, zero))["w"].numpy()
    assert np.linalg.norm(back - low) < 0.01 * np.linalg.norm(low)


# topk.


def test_topk_sends_the_largest() -> None:
    change = rng(1).standard_normal((50, 60)).astype(np.float32)
    back = there_and_back("topk", {"w": np.zeros_like(change)}, {"w": change})["w"].numpy()
    places = np.flatnonzero(back)
    assert places.size == 30
    assert np.abs(change.flat[places]).min() >= np.sort(np.abs(change).reshape(-1))[-30]
    assert np.allclose(back.flat[places], change.flat[places], rtol=2**-8)


@given(data=st.data(), size=st.integers(1, 3000))
def test_places_come_back(data: st.DataObject, size: int) -> None:
    number = data.draw(st.integers(1, size))
    places = np.sort(rng(data.draw(st.integers(0, 99))).permutation(size)[:number])
    unary, low = sparse.code_places(places, size)
    assert len(unary) <= sparse.most_unary(size, number)
    assert len(low) == sparse.low_bytes(size, number)
    back = sparse.read_places(memoryview(unary), memoryview(low), size, number)
    assert np.array_equal(back, places)


# Sizes: of a whole update as it crosses, over its float32 payload.


@pytest.mark.parametrize(("name", "most"), [("int8", 0.27), ("int4", 0.14), ("topk", 0.04)])
def test_an_update_is_as_small_as_promised(name: str, most: float) -> None:
    shapes = {"c1": (16, 1, 5, 5), "b1": (16,), "c2": (32, 16, 5, 5), "b2": (32,)}
    shapes |= {"f1": (100, 512), "b3": (100,), "f2": (10, 100), "b4": (10,)}
    dice = rng(6)
    trained = {key: dice.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
    zero = {key: np.zeros_like(array) for key, array in trained.items()}
    coded, _ = encode_update(Codec(name=name), tensors(zero), tensors(trained), Feedback(), dice)
    assert coded.nbytes <= most * sum(array.nbytes for array in trained.values())


# Models to many.


@pytest.mark.parametrize("name", BROADCASTS[1:])
def test_a_model_comes_back_without_anything_held(name: str) -> None:
    arrays = model()
    coded = encode_model(Codec(name=name), tensors(arrays))
    assert is_coded({"any": coded})
    back, exact = decode_model(coded)
    assert alike(tensors(arrays), back)
    assert exact == (name == "lossless")
    for key, array in arrays.items():
        most = {"lossless": 0.0, "bf16": 0.004, "int8": 0.01}[name] * np.abs(array).max(initial=0)
        assert np.abs(back[key].numpy() - array.astype(float)).max(initial=0) <= most, key


@pytest.mark.parametrize("name", CODERS)
def test_an_update_from_a_model_that_lost_something_adds_to_the_exact_one(name: str) -> None:
    exact = model()
    received, _ = decode_model(encode_model(Codec(name="int8"), tensors(exact)))
    trained = {
        key: Tensor.of((one.numpy() + 0.01).astype(one.dtype.numpy_code))
        if one.dtype in LOSSY
        else one
        for key, one in received.items()
    }
    codec = Codec(name=name, ratio=1.0, rank=20)
    coded, _ = encode_update(codec, received, trained, Feedback(), rng(), exact=False)
    back = dict(decode_update(coded, tensors(exact)))
    moved = back["dense"].numpy() - exact["dense"]
    assert np.allclose(moved, 0.01, atol=0.003)


# Names.


def test_a_codec_is_a_name_or_a_table() -> None:
    assert Codec.parse("int8", source="codec") == Codec(name="int8")
    made = Codec.parse({"name": "topk", "ratio": 0.05}, source="codec")
    assert (made.ratio, str(made)) == (0.05, "topk,ratio=0.05")
    assert Codec.parse(made.to_json(), source="again") == made


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("int9", "did you mean 'int8'"),
        ("gzip", "known: none, lossless"),
        (8, "expected a codec's name"),
        ({"ratio": 0.1}, "expected a codec's name"),
        ({"name": "topk", "ration": 0.1}, "did you mean 'ratio'"),
        ({"name": "topk", "ratio": 0}, "ratio is 0"),
        ({"name": "topk", "ratio": True}, "expected a number"),
        ({"name": "powersgd", "rank": 1.5}, "expected a number"),
        ({"name": "powersgd", "rank": 10**9}, "expected 1 to"),
        ({"name": "int8", "block": 3}, "expected 16 to"),
        ({"name": "int8", "ratio": 0.1}, "unknown key"),
    ],
)
def test_a_mistaken_codec_is_named(said: object, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Codec.parse(said, source="run options: codec")
    assert words in str(caught.value)
    assert "run options: codec" in str(caught.value)


def test_only_some_codecs_suit_a_broadcast() -> None:
    assert parse_broadcast("bf16", source="x") == "bf16"
    with pytest.raises(ConfigError, match="cannot code what is broadcast"):
        parse_broadcast("topk", source="x")


def test_all_codecs_are_installed_here() -> None:
    assert installed() == CODERS


@pytest.mark.parametrize("name", LOSING)
def test_a_device_without_zstandard_sends_parts_as_they_are(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    received = model()
    trained = trained_from(received, 1)
    with monkeypatch.context() as patch:
        patch.setattr(packing, "zstandard", None)
        coded, _ = encode_update(
            Codec(name=name), tensors(received), tensors(trained), Feedback(), rng(1)
        )
    back = dict(decode_update(coded, tensors(received)))
    same = there_and_back(name, received, trained)
    assert all(back[key].data == one.data for key, one in same.items())


def test_without_zstandard_lossless_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "find_spec", lambda name: None if name == "zstandard" else name)
    assert installed.__wrapped__() == LOSING


def test_names_and_options_need_no_numpy() -> None:
    """The agent knows what codecs there are, and stays small."""
    source = "import sys, skerry_protos.codecs as c; c.installed(); print('numpy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
