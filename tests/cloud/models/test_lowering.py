"""Layers as the LiteRT converter gets them: the same answers, fewer operations."""

from typing import Any

import pytest
import torch
from skerry_cloud.models.export.lowering import Lowered, same
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx


def operations(model: nn.Module, example: Tensor, *, lowered: bool) -> list[str]:
    """Return the operations that a model comes down to."""

    def run(given: Tensor) -> Any:
        with Lowered(layers=lowered):
            return model(given)

    with torch.no_grad():
        names = [str(node.target) for node in make_fx(run)(example).graph.nodes]
    return [name.removeprefix("aten.").split(".")[0].strip("_") for name in names]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_gru_answers_the_same(bidirectional: bool, batch_first: bool, bias: bool) -> None:
    torch.manual_seed(1)
    model = nn.GRU(
        5, 7, num_layers=2, bidirectional=bidirectional, batch_first=batch_first, bias=bias
    ).eval()
    rows = torch.randn(3, 4, 5)
    start = torch.randn(4 if bidirectional else 2, 4 if not batch_first else 3, 7)
    with torch.no_grad():
        for given in ((rows,), (rows, start)):
            plain = model(*given)
            with Lowered():
                found = model(*given)
            for one, other in zip(plain, found, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_step_of_a_gru_has_one_sigmoid() -> None:
    model, rows = nn.GRU(5, 7, batch_first=True).eval(), torch.randn(1, 6, 5)
    plain, lowered = (operations(model, rows, lowered=each) for each in (False, True))
    assert (plain.count("sigmoid"), plain.count("tanh")) == (12, 6)
    assert (lowered.count("sigmoid"), lowered.count("tanh")) == (6, 6)


def encoder(*, norm_first: bool = True) -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        16, 4, dim_feedforward=32, batch_first=True, norm_first=norm_first
    )
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()


@pytest.mark.parametrize("norm_first", [False, True])
def test_attention_answers_the_same(norm_first: bool) -> None:
    torch.manual_seed(1)
    assert same(encoder(norm_first=norm_first), [torch.randn(2, 5, 16)])
    several = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    rows = torch.randn(2, 5, 16)
    with torch.no_grad():
        plain = several(rows, rows, rows, need_weights=False)[0]
        with Lowered():
            found = several(rows, rows, rows, need_weights=False)[0]
    torch.testing.assert_close(plain, found, rtol=1e-5, atol=1e-6)


def test_what_is_unusual_is_left_to_torch() -> None:
    torch.manual_seed(1)
    attention, rows = nn.MultiheadAttention(16, 2, batch_first=True).eval(), torch.randn(2, 5, 16)
    other, mask = torch.randn(2, 3, 16), torch.triu(torch.full((5, 5), float("-inf")), 1)
    packed = nn.utils.rnn.pack_sequence([torch.randn(4, 5), torch.randn(2, 5)])
    gru = nn.GRU(5, 7).eval()
    with torch.no_grad():
        plain = [
            attention(rows, rows, rows),
            attention(rows, other, other, need_weights=False),
            attention(rows, rows, rows, attn_mask=mask, need_weights=False),
        ]
        packed_plain = gru(packed)[1]
        with Lowered():
            found = [
                attention(rows, rows, rows),
                attention(rows, other, other, need_weights=False),
                attention(rows, rows, rows, attn_mask=mask, need_weights=False),
            ]
            packed_found = gru(packed)[1]
    for one, its in zip(plain, found, strict=True):
        assert torch.equal(one[0], its[0])
        assert (one[1] is None) == (its[1] is None)
    assert torch.equal(packed_plain, packed_found)


def test_a_model_that_would_answer_otherwise_is_not_lowered() -> None:
    class Nudged(nn.Module):
        """Asks which mode it runs in, as no model should."""

        def forward(self, rows: Tensor) -> Tensor:
            lowered = torch._C._len_torch_function_stack() > 0
            return rows + float(lowered)

    assert not same(Nudged(), [torch.zeros(1, 3)])
