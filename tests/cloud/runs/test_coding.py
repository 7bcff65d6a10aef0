"""The server side's part of codecs: what is sent, what comes back, and lies about either."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from skerry_cloud.blocks import mapped
from skerry_cloud.runs.asker import Ask
from skerry_cloud.runs.codecs import Codecs
from skerry_cloud.runs.coding import Coding
from skerry_cloud.runs.plan import RunOptions
from skerry_cloud.store.devices import Device
from skerry_protos.codecs import Codec
from skerry_protos.codecs.updates import (
    Feedback,
    coded_group,
    decode_model,
    encode_update,
    is_coded,
    the_coded,
)
from skerry_protos.errors import PeerError
from skerry_protos.messages import DeviceId
from skerry_protos.records import Records, encode
from skerry_protos.tensors import Tensor

Group = dict[str, Tensor]
Place = Callable[[], Path]


def group(value: float, rows: int = 100) -> Group:
    return {"w": Tensor.of(np.full((rows, 200), value, np.float32))}


def asking(content: Records, node: int, message_type: str = "train") -> Ask:
    return Ask(node=node, message_type=message_type, content=content)


def coded(sent: Group, trained: Group, codec: str = "int8") -> Group:
    made, _ = encode_update(Codec(name=codec), sent, trained, Feedback(), np.random.default_rng(0))
    return coded_group(made)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return lambda: tmp_path / "kept"


# What is sent.


def test_one_coded_content_is_for_all_who_can_and_the_plain_one_for_the_others() -> None:
    content = Records(arrays={"arrays": group(1 / 3)}, configs={"config": {"round": 1}})
    coding = Coding(used=True, broadcast="bf16", decodes={1, 2})
    one, two, three = coding.sent([asking(content, node) for node in (1, 2, 3)])
    assert one is two
    assert three is content
    assert one.configs == content.configs
    back, exact = decode_model(the_coded(one.arrays["arrays"]))
    assert (not exact, back["w"].shape) == (True, (100, 200))


@pytest.mark.parametrize("message_type", ["query", "query.hello", "system"])
def test_what_is_no_model_is_sent_as_it_is(message_type: str) -> None:
    content = Records(arrays={"arrays": group(1)})
    coding = Coding(used=True, broadcast="int8", decodes={1})
    assert coding.sent([asking(content, 1, message_type)]) == [content]
    several = Records(arrays={"one": group(1), "two": group(2)})
    assert coding.sent([asking(several, 1)]) == [several]
    empty = Records(arrays={"arrays": {}})
    assert coding.sent([asking(empty, 1)]) == [empty]


# What comes back.


def test_a_large_update_is_made_whole_in_a_file_that_goes_with_it(place: Place) -> None:
    sent, trained = group(1, 1000), group(2, 1000)
    reply = Records(
        arrays={"extra": group(5, 10), "arrays": coded(sent, trained, "lossless")},
        metrics={"metrics": {"loss": 0.5}},
    )
    made = Coding(used=True).plain(reply, Records(arrays={"arrays": sent}), place)
    assert list(made.arrays) == ["extra", "arrays"]
    assert made.metrics == reply.metrics
    assert np.array_equal(made.arrays["arrays"]["w"].numpy(), np.full((1000, 200), 2.0))
    assert np.array_equal(made.arrays["extra"]["w"].numpy(), np.full((10, 200), 5.0))
    assert mapped(made.arrays["arrays"]["w"])
    assert not place().exists()


def test_a_small_update_is_made_whole_in_memory(place: Place) -> None:
    sent, trained = group(1, 10), group(2, 10)
    reply = Records(arrays={"fitres.parameters": coded(sent, trained)})
    asked = Records(arrays={"fitins.parameters": sent})
    made = Coding(used=True).plain(reply, asked, place)
    assert np.allclose(made.arrays["fitres.parameters"]["w"].numpy(), 2.0, atol=0.02)


def test_a_reply_that_is_not_coded_is_left_alone(place: Place) -> None:
    reply = Records(arrays={"arrays": group(1)})
    assert Coding().plain(reply, None, place) is reply


def test_lies_of_devices_are_refused(place: Place) -> None:
    sent = group(1)
    asked = Records(arrays={"arrays": sent})
    coding = Coding(used=True)
    good = coded(sent, group(2))
    for arrays, of, words in (
        ({"arrays": good}, None, "nobody asked for"),
        ({"arrays": good, "more": good}, asked, "nobody asked for"),
        ({"arrays": good}, Records(arrays={"arrays": group(1, 50)}), "not of the arrays"),
        ({"arrays": good}, Records(), "not of the arrays"),
        ({"arrays": {"a": the_coded(good), "b": sent["w"]}}, asked, "beside others"),
        ({"arrays": coded_group(_with(the_coded(good), b"\0" * 9))}, asked, "begin with"),
    ):
        with pytest.raises(PeerError, match=words):
            coding.plain(Records(arrays=arrays), of, place)
    assert not place().exists()


def test_a_lie_that_is_found_late_leaves_no_file(place: Place) -> None:
    """A scale is looked at when its tensor's turn comes: part of the file is written by then."""
    sent, trained = {"a": group(1, 1000)["w"]}, {"a": group(2, 1000)["w"]}
    sent, trained = sent | group(1, 1000), trained | group(2, 1000)
    good = the_coded(coded(sent, trained, "bf16"))
    cut = bytes(good.data[:-4]) + b"\0\0\0\0"  # the last frame's end
    reply = Records(arrays={"arrays": coded_group(_with(good, cut))})
    with pytest.raises(PeerError, match="zstd"):
        Coding(used=True).plain(reply, Records(arrays={"arrays": sent}), place)
    assert not place().exists()


def _with(tensor: Tensor, data: bytes) -> Tensor:
    return Tensor.opaque(data, tensor.stype, "", ())


# Which codec a device is asked for.


def device(name: str, codecs: list[str], profile: str = "", **labels: str) -> Device:
    return Device(
        id=DeviceId(name),
        node=1,
        given=labels,
        profile=profile,
        invite="",
        enrolled_at=0.0,
        revoked_at=None,
        revoked_why=None,
        cordoned=False,
        drained_at=None,
        connected=True,
        transport="grpc",
        last_seen_at=None,
        last_error="",
        agent_version="1",
        heartbeat={"codecs": codecs},
    )


ALL = ["lossless", "bf16", "int8", "int4", "topk", "powersgd"]


def test_the_first_selector_that_means_a_device_decides() -> None:
    codecs = Codecs(
        RunOptions(
            codec="bf16", codecs={"site=a,!wired": "topk", "site=a": "int8", "profile=p": "int4"}
        )
    )
    assert codecs.used
    for labels, profile, name in (
        ({"site": "a"}, "p", "topk"),
        ({"site": "a", "wired": "yes"}, "p", "int8"),
        ({"site": "b"}, "p", "int4"),
        ({}, "q", "bf16"),
    ):
        assert codecs.of(device("d", ALL, profile, **labels)).name == name
    assert not codecs.lacking()


def test_a_task_names_its_codec_only_to_train() -> None:
    codecs = Codecs(RunOptions(codec={"name": "topk", "ratio": 0.05}, seed=7))
    said = codecs.task_json(device("d", ALL), "train")
    assert said == '{"name": "topk", "ratio": 0.05, "seed": 7}'
    assert codecs.kept_by == {"d"}
    assert codecs.task_json(device("e", ALL), "evaluate") == ""
    assert Codecs(RunOptions()).task_json(device("d", ALL), "train") == ""


def test_an_agent_without_zstd_codes_but_is_sent_plain_models() -> None:
    codecs = Codecs(RunOptions(codec="int8", broadcast_codec="bf16"))
    poor = device("poor", ["bf16", "int8"])
    assert (codecs.of(poor).name, codecs.decodes(poor)) == ("int8", False)
    codecs.task_json(poor, "train")
    codecs.task_json(poor, "train")
    [note] = codecs.lacking()
    assert note.startswith("poor: its agent announces no bf16 broadcasts;")
    assert codecs.lacking() == []


def test_after_a_lossy_broadcast_only_differences_come_back() -> None:
    for broadcast, name in (("none", "none"), ("lossless", "none"), ("bf16", "lossless")):
        codecs = Codecs(RunOptions(broadcast_codec=broadcast))
        assert codecs.of(device("d", ALL)).name == name
        assert codecs.of(device("old", [])).name == "none"


def test_sizes_of_what_is_sent_are_as_promised() -> None:
    content = Records(arrays={"arrays": {"w": Tensor.of(_noise())}})
    plain = sum(memoryview(part).nbytes for part in encode(content))
    for broadcast, most in (("bf16", 0.51), ("int8", 0.27)):
        [sent] = Coding(broadcast=broadcast, decodes={1}).sent([asking(content, 1)])
        assert is_coded(sent.arrays["arrays"])
        assert sum(memoryview(part).nbytes for part in encode(sent)) < most * plain


def _noise() -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
    return np.random.default_rng(0).standard_normal((300, 400)).astype(np.float32)
