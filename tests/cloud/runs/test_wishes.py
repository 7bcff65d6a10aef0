"""What a server side may say: anything else is a PeerError, whatever it is."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from skerry_cloud.runs import wishes
from skerry_cloud.runs.channel import pack, unpack
from skerry_protos.errors import PeerError

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=12,
)
ASK: dict[str, Any] = {
    "do": "ask",
    "ask": 1,
    "round": 1,
    "phase": "train",
    "timeout_s": 10,
    "contents": [{"begin": 0, "end": 4}, {"file": "f1", "begin": 1, "end": 4}],
    "wants": [
        {"node": 2**63, "type": "train.x", "group": "", "ttl_s": 1.5, "content": 0},
        {"node": 3, "type": "get_parameters", "group": "g", "ttl_s": 0, "content": 1},
    ],
}


def test_a_question_is_read() -> None:
    question = wishes.Question.parse(ASK, b"abcd")
    assert question.contents == (
        wishes.Content(data=b"abcd"),
        wishes.Content(data="f1", beside=b"bcd"),
    )
    assert [(want.node, want.message_type) for want in question.wants] == [
        (2**63, "train.x"),
        (3, "get_parameters"),
    ]


@given(st.sampled_from(sorted(ASK)), json_values)
def test_a_question_with_nonsense_is_read_or_refused(key: str, value: Any) -> None:
    try:
        question = wishes.Question.parse({**ASK, key: value}, b"abcd")
    except PeerError:
        return
    assert len(question.wants) > 0


@given(st.dictionaries(st.sampled_from(["metrics", "tasks", "file", "round"]), json_values))
def test_other_wishes_with_nonsense_are_read_or_refused(said: dict[str, Any]) -> None:
    for read in (wishes.metrics, wishes.refusals, wishes.file_name):
        try:
            read(said)
        except PeerError:
            continue


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "", ".", "a/b", "f1.spare", "A"])
def test_a_file_is_a_plain_name(name: str) -> None:
    with pytest.raises(PeerError, match="named the file"):
        wishes.file_name({"file": name})


@given(st.binary(max_size=64))
def test_noise_on_the_channel_is_refused(data: bytes) -> None:
    with pytest.raises(PeerError):
        unpack(data, b"")


def test_a_message_that_is_too_long_is_not_sent() -> None:
    with pytest.raises(PeerError, match="too long"):
        pack({"do": "note", "text": "x" * (9 * 1024**2)})
