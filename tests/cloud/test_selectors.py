"""Selectors: what they choose, and what they say when they cannot be read."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from skerry_cloud.selectors import SelectorError, check_labels, parse

LABELS = {"site": "north", "tier": "edge", "example.com/gpu": "orin", "empty": ""}


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("", True),
        ("  ", True),
        ("site=north", True),
        ("site==north", True),
        ("site = north , tier = edge", True),
        ("site=south", False),
        ("site!=south", True),
        ("site!=north", False),
        ("absent!=x", True),
        ("site in (north, south)", True),
        ("site in (east)", False),
        ("site not in (east,west)", True),
        ("site not in (north)", False),
        ("absent not in (x)", True),
        ("site", True),
        ("absent", False),
        ("!absent", True),
        ("!site", False),
        ("example.com/gpu=orin", True),
        ("empty=", True),
        ("site=", False),
        ("site=north,tier=cloud", False),
        ("in in (x)", False),
    ],
)
def test_a_selector_chooses_by_labels(text: str, chosen: bool) -> None:
    assert parse(text).matches(LABELS) is chosen


@pytest.mark.parametrize(
    "text",
    ["=north", "site=north,", ",", "site in ()", "site in (a", "site in a", "a b", "site=n rth",
     "site=(a)", "!", "!!a", "-a=b", "a=b;c=d", "site>3", "x" * 3000],
)  # fmt: skip
def test_a_selector_that_cannot_be_read_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(SelectorError) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=60))
def test_any_text_is_a_selector_or_a_selector_error(text: str) -> None:
    with contextlib.suppress(SelectorError):
        parse(text).matches(LABELS)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("sit=north", "did you mean 'site'"),
        ("nothing-like-it", "no device has a label"),
        ("site=nort", "is one of: north"),
        ("site=north,!site", "none matches all"),
    ],
)
def test_a_selector_that_matches_nobody_is_explained(text: str, hint: str) -> None:
    assert hint in parse(text).hint([LABELS])


def test_a_label_that_only_devices_state_is_named_as_theirs() -> None:
    assert "'device/site'" in parse("site=north").hint([{"device/site": "north"}])
    assert not parse("site=north").matches({"device/site": "north"})
    assert parse("device/site=north").matches({"device/site": "north"})


@pytest.mark.parametrize(
    "labels",
    [{"": "x"}, {"a b": "x"}, {"a": "b c"}, {"a": "(x)"}, {"a" * 64: "x"}, {"a": "b" * 256}],
)
def test_a_label_that_no_selector_could_name_is_refused(labels: dict[str, str]) -> None:
    with pytest.raises(SelectorError):
        check_labels(labels)
    check_labels(LABELS)
