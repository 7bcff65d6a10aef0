"""The Open Inference Protocol: what it takes, what it answers, and what it refuses by name."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skerry_edge.inference.protocol import DATATYPES, answer, parse
from skerry_edge.inference.runtimes import InputError, Spec

SPECS = [Spec(name="x", shape=(None, 3), dtype=np.dtype(np.float32))]


def body(**changes: Any) -> bytes:
    one = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3], **changes}
    return json.dumps({"id": "7", "inputs": [one]}).encode()


def test_json_flat_and_nested() -> None:
    for data in ([1, 2, 3], [[1, 2, 3]], [1.0, 2.0, 3.0]):
        request = parse(body(data=data), None, SPECS)
        assert request.inputs["x"].tolist() == [[1, 2, 3]]
        assert request.inputs["x"].dtype == np.float32
        assert request.id == "7" and request.rows == 1


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ([True, False, True], "holds what is no FP32"),
        ([1, 2, "3"], "holds what is no FP32"),
        ([1, None, 3], "holds what is no FP32"),
        ([[1, 2], [3]], "nested unevenly"),
        ([1, 2, {}], "holds what is no FP32"),
        ([1e39, 2, 3], "not finite: value 0"),
        ([1, 2], "has 2 values"),
        ([], "has 0 values"),
    ],
)
def test_only_numbers_are_numbers(data: object, why: str) -> None:
    with pytest.raises(InputError, match=why):
        parse(body(data=data), None, SPECS)


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
@given(st.data())
def test_numbers_are_rounded_as_numpy_rounds_them(datatype: str, data: st.DataObject) -> None:
    dtype = DATATYPES[datatype]
    most = float(np.finfo(dtype).max)
    numbers = st.floats(-most, most) | st.integers(-1000, 1000) | st.just(most) | st.just(-most)
    given_numbers = data.draw(st.lists(numbers, min_size=1, max_size=600))
    shape = [1, len(given_numbers)]
    made = body(datatype=datatype, data=given_numbers, shape=shape)
    found = parse(made, None, [Spec(name="x", shape=(None, None), dtype=dtype)]).inputs["x"]
    assert found.dtype == dtype
    assert np.array_equal(found[0], np.array(given_numbers, np.float64).astype(dtype))


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
def test_binary_tensors_both_ways(datatype: str) -> None:
    dtype = DATATYPES[datatype]
    values = np.arange(6).reshape(2, 3).astype(dtype)
    head = {
        "inputs": [
            {
                "name": "x",
                "shape": [2, 3],
                "datatype": datatype,
                "parameters": {"binary_data_size": values.nbytes},
            }
        ],
        "parameters": {"binary_data_output": True},
    }
    text = json.dumps(head).encode()
    specs = [Spec(name="x", shape=(None, 3), dtype=dtype)]
    request = parse(text + values.tobytes(), len(text), specs)
    assert (request.inputs["x"] == values).all()
    made, length = answer(request, {"y": values}, model="m", version="1", parameters={})
    assert length is not None
    said = json.loads(made[:length])
    assert said["outputs"][0]["parameters"]["binary_data_size"] == values.nbytes
    assert made[length:] == values.tobytes()


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (b"{", "not JSON"),
        (b"[]", "must be a JSON object"),
        (b"{}", "inputs must be a list"),
        (b'{"inputs": [1]}', "each input must be a JSON object"),
        (body(name="z"), r"no input 'z'; it has \['x'\]"),
        (body(shape=[1, 4]), r"has shape \[1, 4\]; the model takes \[-1, 3\]"),
        (body(shape=[0, 3], data=[]), r"has shape \[0, 3\]"),
        (body(shape=[2**31, 3]), "shape must be a list of sizes"),
        (body(shape=[-1, 3]), "shape must be a list of sizes"),
        (body(shape="x"), "shape must be a list of sizes"),
        (body(datatype="FP64"), "datatype is 'FP64'; the model takes FP32"),
        (body(data=[1, 2]), r"has 2 values; shape \[1, 3\] needs 3"),
        (body(data=["a", "b", "c"]), "data holds what is no FP32"),
        (body(data=[[1, 2], [3]]), "nested unevenly"),
        (body(data=[1, 2, 1e39]), "is not finite: value 2 is inf"),
        (body(data=None), "data must be a list"),
        (body(parameters={"binary_data_size": 5}), "shape and datatype need 12"),
        (b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[NaN,1,2]}]}', "not JSON"),
    ],
)
def test_bad_input_is_named(made: bytes, why: str) -> None:
    with pytest.raises(InputError, match=why):
        parse(made, None, SPECS)


def test_whole_numbers_stay_within_their_type() -> None:
    specs = [Spec(name="x", shape=(None, 3), dtype=np.dtype(np.uint8))]
    for data in ([1, 2, 256], [1, 2, -1], [1, 2, 0.5]):
        with pytest.raises(InputError, match="whole numbers from 0 to 255"):
            parse(body(datatype="UINT8", data=data), None, specs)


def test_a_missing_input_and_unequal_rows_are_named() -> None:
    specs = [*SPECS, Spec(name="y", shape=(None,), dtype=np.dtype(np.float32))]
    with pytest.raises(InputError, match="input 'y' is missing"):
        parse(body(), None, specs)
    two = json.loads(body())
    two["inputs"].append({"name": "y", "shape": [2], "datatype": "FP32", "data": [1, 2]})
    with pytest.raises(InputError, match="differ in their first size"):
        parse(json.dumps(two).encode(), None, specs)


@given(st.binary(max_size=200), st.one_of(st.none(), st.integers(-5, 300)))
def test_nothing_else_ever_leaves_the_parser(made: bytes, length: int | None) -> None:
    try:
        parse(made, length, SPECS)
    except InputError as error:
        assert "\n" not in str(error)


def test_outputs_may_be_chosen() -> None:
    made = json.loads(body())
    made["outputs"] = [{"name": "b"}]
    request = parse(json.dumps(made).encode(), None, SPECS)
    found = {"a": np.zeros(1), "b": np.array(["cat"])}
    text, _ = answer(request, found, model="m", version="2", parameters={"k": 1})
    said = json.loads(text)
    assert said["outputs"] == [{"name": "b", "shape": [1], "datatype": "BYTES", "data": ["cat"]}]
    assert (said["model_version"], said["id"], said["parameters"]) == ("2", "7", {"k": 1})
    made["outputs"] = [{"name": "c"}]
    request = parse(json.dumps(made).encode(), None, SPECS)
    with pytest.raises(InputError, match=r"no output 'c'; it has \['a', 'b'\]"):
        answer(request, found, model="m", version="2", parameters={})
