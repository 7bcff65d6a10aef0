"""Coding in the worker: apps see plain arrays, what crosses is small, and feedback is kept."""

from pathlib import Path

import numpy as np
import pytest
from skerry_edge.worker.coding import opened, said
from skerry_edge.worker.messages import Job
from skerry_edge.worker.pool import Workers
from skerry_protos.codecs import NAMES, Codec
from skerry_protos.codecs.updates import (
    Feedback,
    coded_group,
    decode_update,
    encode_model,
    is_coded,
    the_coded,
)
from skerry_protos.errors import PeerError
from skerry_protos.messages import Digest
from skerry_protos.records import Records, read, write
from skerry_protos.tensors import Tensor

from tests.edge.conftest import MakeJob, WriteApp, native, reply_of

BUNDLE = Digest("ef" * 32)
SHAPE = (60, 50)
NBYTES = 4 * 60 * 50
Group = dict[str, Tensor]

BIG = (
    native("model['w'] += rng.standard_normal(model['w'].shape).astype(np.float32)")
    .replace("np.zeros(3, np.float32)", f"np.zeros({SHAPE}, np.float32)")
    .replace("import numpy as np\n", "import numpy as np\nrng = np.random.default_rng(0)\n", 1)
)


def group(value: float = 1.0, name: str = "w") -> Group:
    return {name: Tensor.of(np.full(SHAPE, value, np.float32))}


def job(tmp_path: Path, codec: object, content: Records, **other: object) -> Job:
    write(content, tmp_path / "content")
    values: dict[str, object] = {
        "id": "t1",
        "kind": "native",
        "app": "",
        "entry": "",
        "message_type": "train",
        "content": str(tmp_path / "content"),
        "reply": str(tmp_path / "reply"),
        "codec": codec,
        "device": "d1",
        "round": 1,
        "feedback_out": str(tmp_path / "feedback"),
    }
    return Job(**(values | other))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES[1:])
def test_an_update_is_coded_and_everything_beside_it_is_not(tmp_path: Path, name: str) -> None:
    sent, trained = group(1.0), group(1.5)
    reply = Records(arrays={"arrays": trained}, metrics={"metrics": {"loss": 0.5}})
    made = said(job(tmp_path, {"name": name}, Records(arrays={"arrays": sent})), reply)
    assert made.codec.startswith(name)
    assert made.plain_bytes > NBYTES > made.reply.nbytes
    assert made.reply.metrics == reply.metrics
    assert is_coded(made.reply.arrays["arrays"])
    assert made.feedback == (name in ("topk", "powersgd"))
    back = dict(decode_update(the_coded(made.reply.arrays["arrays"]), sent))
    assert back["w"].shape == SHAPE


@pytest.mark.parametrize(
    ("codec", "message_type", "arrays"),
    [
        ({}, "train", {"arrays": group()}),
        ({"name": "int8"}, "evaluate", {"arrays": group()}),
        ({"name": "int8"}, "query.hello", {"arrays": group()}),
        ({"name": "int8"}, "train", {"arrays": group(name="other")}),
        ({"name": "int8"}, "train", {"arrays": {}}),  # what secure aggregation leaves of it
        ({"name": "int8"}, "train", {"masked": group(), "more": group()}),
        ({"name": "int8"}, "train", {"arrays": {"w": Tensor.of(np.zeros(SHAPE))}}),
        ({"name": "int8"}, "train", {}),
    ],
)
def test_what_is_no_update_crosses_as_the_app_made_it(
    tmp_path: Path, codec: dict[str, object], message_type: str, arrays: dict[str, Group]
) -> None:
    asked = job(tmp_path, codec, Records(arrays={"arrays": group()}), message_type=message_type)
    reply = Records(arrays=arrays, configs={"config": {"masked": b"\x01"}})
    made = said(asked, reply)
    assert made.reply is reply
    assert (made.codec, made.plain_bytes, made.feedback) == ("", 0, False)


@pytest.mark.parametrize("name", ["lossless", "int8"])
def test_a_model_of_a_few_numbers_is_not_worth_a_codec(tmp_path: Path, name: str) -> None:
    few = {"w": Tensor.of(np.ones(3, np.float32))}
    reply = Records(arrays={"arrays": few})
    made = said(job(tmp_path, {"name": name}, Records(arrays={"arrays": few})), reply)
    assert (made.reply is reply, made.codec) == (True, "")


def test_groups_of_flowers_older_api_have_two_names(tmp_path: Path) -> None:
    asked = job(tmp_path, {"name": "int8"}, Records(arrays={"fitins.parameters": group(1)}))
    made = said(asked, Records(arrays={"fitres.parameters": group(2)}))
    assert is_coded(made.reply.arrays["fitres.parameters"])


def test_an_app_that_writes_to_what_it_was_given_changes_no_difference(tmp_path: Path) -> None:
    sent = group(1.0)
    asked = job(tmp_path, {"name": "lossless"}, Records(arrays={"arrays": sent}))
    made = said(asked, Records(arrays={"arrays": group(3.0)}))
    back = dict(decode_update(the_coded(made.reply.arrays["arrays"]), sent))
    assert np.array_equal(back["w"].numpy(), np.full(SHAPE, 3.0))


def test_feedback_goes_on_where_it_was_and_damage_begins_it_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codec, sent = {"name": "topk"}, Records(arrays={"arrays": group(0.0)})
    first = said(job(tmp_path, codec, sent), Records(arrays={"arrays": group(1.0)}))
    assert first.feedback
    kept = tmp_path / "kept"
    (tmp_path / "feedback").rename(kept)
    again = job(tmp_path, codec, sent, feedback=str(kept), round=2)
    said(again, Records(arrays={"arrays": group(0.0)}))
    before, after = (
        Feedback.from_records(read(path)).residual["w"].sum()
        for path in (kept, tmp_path / "feedback")
    )
    assert 0 < after < before < 3000
    kept.write_bytes(b"nonsense")
    assert said(again, Records(arrays={"arrays": group(1.0)})).feedback
    assert "cannot be read" in capsys.readouterr().err


def test_a_task_done_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    asked = job(tmp_path, {"name": "int8", "seed": 3}, Records(arrays={"arrays": group(0.0)}))
    trained = {"w": Tensor.of(np.random.default_rng(0).standard_normal(SHAPE).astype("<f4"))}
    one, two = (said(asked, Records(arrays={"arrays": trained})).reply for _ in range(2))
    assert the_coded(one.arrays["arrays"]).data == the_coded(two.arrays["arrays"]).data


def test_a_coded_model_is_plain_for_the_app() -> None:
    content = Records(
        arrays={"arrays": coded_group(encode_model(Codec(name="bf16"), group(1 / 3)))},
        configs={"config": {"round": 1}},
    )
    plain, exact = opened(content)
    assert not exact
    assert plain.configs == content.configs
    assert np.allclose(plain.arrays["arrays"]["w"].numpy(), 1 / 3, rtol=2**-8)
    assert opened(plain) == (plain, True)


def test_a_coded_model_that_lies_is_refused() -> None:
    lie = Tensor.opaque(b"SKC1\xff\xff\xff\xff", "skerry.coded", "", ())
    with pytest.raises(PeerError):
        opened(Records(arrays={"arrays": {"any": lie}}))


async def test_a_worker_codes_and_says_so(
    workers: Workers, write_app: WriteApp, make_job: MakeJob, tmp_path: Path
) -> None:
    content = tmp_path / "model"
    write(Records(arrays={"arrays": group(0.0)}), content)
    asked = make_job(
        write_app(BIG),
        content=str(content),
        codec={"name": "topk", "ratio": 0.05},
        feedback_out=str(tmp_path / "feedback"),
    )
    bounds = workers.bounds(seconds=20, memory_bytes=0, output_bytes=0)
    result = await workers.run(asked, BUNDLE, bounds)
    assert not result.outcome.failed, result
    assert (result.outcome.codec, result.outcome.feedback) == ("topk,ratio=0.05", True)
    assert result.outcome.plain_bytes > NBYTES
    reply = reply_of(asked)
    assert reply.nbytes < NBYTES * 0.06
    assert reply.metrics["metrics"]["num-examples"] == 5
    assert Feedback.from_records(read(tmp_path / "feedback")).residual["w"].shape == (3000,)
