"""Computing only the tokens that are read gives what the whole block gives there."""

import pytest
import torch
from torch import Tensor, nn

from vlm.models.layers import Block, Tokens
from vlm.models.packing import FirstToken, PackedEnds, PackedRows, Packing, PaddedRows, PaddedToken, has_varlen

D, LENGTHS = 24, torch.tensor([3, 8, 1, 5])
PACKING = Packing.of(LENGTHS)
causal_or_not = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def make_block(causal: bool) -> Block:
    block = Block(D, 3, 40, activation="gelu", norm_eps=1e-5, causal=causal).double()
    for norm in (block.norm1, block.norm2):  # as after training, not as at the start
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return block


@causal_or_not
def test_packed_rows_equal_each_row_alone(causal: bool) -> None:
    block, rows = make_block(causal), [torch.randn(1, int(n), D).double() for n in LENGTHS]
    packed = block(torch.cat(rows, dim=1)[0], PackedRows(PACKING))
    torch.testing.assert_close(packed, torch.cat([block(row) for row in rows], dim=1)[0])


@causal_or_not
def test_packed_rows_equal_pytorchs_layer_on_padded_rows(causal: bool) -> None:
    """In float32, as models run.  A causal mask hides the padding, since it stands behind the row."""
    block = make_block(causal).float()
    theirs = nn.TransformerEncoderLayer(D, 3, 40, dropout=0, activation="gelu", batch_first=True, norm_first=True)
    names = {"self_attn.in_proj_": "attn.qkv.", "self_attn.out_proj": "attn.proj", "linear": "mlp.fc"}
    state = block.state_dict()
    for foreign, own in names.items():
        state = {name.replace(own, foreign): tensor for name, tensor in state.items()}
    theirs.load_state_dict(state)
    padded, real = torch.randn(4, 8, D), torch.arange(8) < LENGTHS[:, None]
    future = torch.ones(8, 8, dtype=torch.bool).triu(1)
    hidden = theirs(padded, src_mask=future if causal else None, src_key_padding_mask=None if causal else ~real)
    torch.testing.assert_close(block(padded[real], PackedRows(PACKING)), hidden[real], rtol=0, atol=2e-6)


POSITIONS, ENDS = torch.tensor([2, 4, 0, 0]), LENGTHS.cumsum(0) - 1


@pytest.mark.parametrize(
    ("causal", "all_tokens", "one", "shape", "place"),
    [
        (False, None, FirstToken(), (4, 8, D), (slice(None), 0)),
        *(
            (causal, PackedRows(PACKING), PackedEnds(PACKING), (17, D), LENGTHS.cumsum(0) - 1)
            for causal in (False, True)
        ),
        *(
            (causal, PaddedRows(lengths), PaddedToken(POSITIONS, lengths), (4, 8, D), (torch.arange(4), POSITIONS))
            for causal in (False, True)
            for lengths in (LENGTHS, None)
        ),
    ],
)
def test_one_token_alone_gives_what_it_gives_among_all(
    causal: bool, all_tokens: Tokens | None, one: Tokens, shape: tuple[int, ...], place: Tensor
) -> None:
    """The output, and the gradients of the tokens and of the weights."""
    block = make_block(causal)
    z, weight = torch.randn(shape, dtype=torch.float64).requires_grad_(), torch.randn(4, D, dtype=torch.float64)
    among_all, alone = block(z, all_tokens)[place], block(z, one)
    torch.testing.assert_close(alone, among_all)
    wanted, found = ((out * weight).sum() for out in (among_all, alone))
    leaves = [z, *block.parameters()]
    torch.testing.assert_close(torch.autograd.grad(found, leaves), torch.autograd.grad(wanted, leaves))


@causal_or_not
def test_padded_rows_equal_packed_rows_at_the_real_tokens(causal: bool) -> None:
    block, packed = make_block(causal), torch.randn(17, D).double()
    padded = PACKING.pad(packed) + torch.randn(4, 8, D) * ~PACKING.mask()[:, 0, 0, :, None]  # anything at the padding
    torch.testing.assert_close(
        PACKING.pack(block(padded, PaddedRows(LENGTHS))), block(packed, PackedRows(PACKING)), rtol=1e-6, atol=1e-6
    )


def test_padding_stands_behind_each_row_and_means_leave_it_out() -> None:
    rows = [torch.randn(int(n), D) for n in LENGTHS]
    torch.testing.assert_close(PACKING.pad(torch.cat(rows)), nn.utils.rnn.pad_sequence(rows, batch_first=True))
    torch.testing.assert_close(PACKING.pack(PACKING.pad(torch.cat(rows))), torch.cat(rows))
    torch.testing.assert_close(PACKING.means(torch.cat(rows)), torch.stack([row.mean(0) for row in rows]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_variable_length_attention_is_for_half_precision_on_gpus(dtype: torch.dtype) -> None:
    assert not has_varlen(torch.empty(3, 3, dtype=dtype))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@causal_or_not
def test_variable_length_attention_gives_what_padded_rows_give(causal: bool) -> None:
    block = make_block(causal).to("cuda", torch.bfloat16)
    packing, packed = PACKING.to(torch.device("cuda")), torch.randn(17, D, device="cuda", dtype=torch.bfloat16)
    ours = block(packed, PackedRows(packing))
    padded = packing.pack(block(packing.pad(packed), PaddedRows(packing.lengths)))
    torch.testing.assert_close(ours, padded, rtol=2e-2, atol=2e-2)
