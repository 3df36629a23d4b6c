"""The block against PyTorch's own attention and encoder layer, timm's pooling, and the formulas of the papers."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm.models.layers import (
    Attention,
    AttentionPool,
    Block,
    DropPath,
    Mlp,
    QuickGELU,
    TanhGELU,
    init_blocks,
    projection,
)

D, H = 24, 3
causal_or_not = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def attention(causal: bool = False, qkv_bias: bool = True) -> Attention:
    return Attention(D, H, causal=causal, qkv_bias=qkv_bias).double()


def future(n: int) -> Tensor:
    """True where a token may not look."""
    return torch.ones(n, n, dtype=torch.bool).triu(1)


@causal_or_not
def test_forward_is_the_projection_of_weights_times_values(causal: bool) -> None:
    layer, z = attention(causal), torch.randn(2, 7, D, dtype=torch.float64)
    heads = layer.weights(z) @ layer.values(z)  # (B, h, N, Dh)
    joined = torch.cat(list(heads.unbind(1)), dim=-1)  # head after head
    torch.testing.assert_close(layer(z), layer.proj(joined))


@causal_or_not
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_attention_is_pytorchs_multihead_attention(causal: bool, qkv_bias: bool) -> None:
    ours, theirs = attention(causal, qkv_bias), nn.MultiheadAttention(D, H, batch_first=True).double()
    theirs.in_proj_weight.data = ours.qkv.weight.data
    theirs.in_proj_bias.data.zero_()
    if qkv_bias:
        theirs.in_proj_bias.data = ours.qkv.bias.data
    theirs.out_proj.load_state_dict(ours.proj.state_dict())
    z = torch.randn(2, 7, D, dtype=torch.float64)
    out, weights = theirs(z, z, z, attn_mask=future(7) if causal else None, average_attn_weights=False)
    torch.testing.assert_close(ours(z), out)
    torch.testing.assert_close(ours.weights(z), weights)


@causal_or_not
def test_each_token_looks_around_with_weights_that_sum_to_one(causal: bool) -> None:
    weights = attention(causal).weights(torch.randn(2, 7, D, dtype=torch.float64))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, H, 7, dtype=torch.float64))
    assert bool((weights[..., future(7)] == 0).all()) == causal


def test_changing_token_5_leaves_0_to_4_alone() -> None:
    block = make_block(causal=True)
    z = torch.randn(2, 8, D, dtype=torch.float64)
    changed = z.clone()
    changed[:, 5] = torch.randn(D)
    before, after = block(z), block(changed)
    torch.testing.assert_close(after[:, :5], before[:, :5], rtol=0, atol=0)
    assert bool(((after - before)[:, 5:].abs().amax(-1) > 1e-6).all())  # and all tokens from 5 on hear of it


def test_bidirectional_attention_does_not_know_the_order_of_tokens() -> None:
    layer, z, order = attention(), torch.randn(2, 8, D, dtype=torch.float64), torch.randperm(8)
    torch.testing.assert_close(layer(z[:, order]), layer(z)[:, order])


def make_block(causal: bool = False, drop_path: float = 0.0) -> Block:
    block = Block(D, H, 40, activation="gelu", norm_eps=1e-5, causal=causal, drop_path=drop_path).double()
    for norm in (block.norm1, block.norm2):  # as after training, not as at the start
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return block


def encoder_layer(block: Block) -> nn.TransformerEncoderLayer:
    """PyTorch's pre-norm layer with the weights of `block`."""
    theirs = nn.TransformerEncoderLayer(D, H, 40, dropout=0, activation="gelu", batch_first=True, norm_first=True)
    names = {"self_attn.in_proj_": "attn.qkv.", "self_attn.out_proj": "attn.proj", "linear": "mlp.fc"}
    state = block.state_dict()
    for foreign, own in names.items():
        state = {name.replace(own, foreign): tensor for name, tensor in state.items()}
    theirs.load_state_dict(state)
    return theirs.to(state["norm1.weight"].dtype)


@causal_or_not
def test_a_block_is_pytorchs_pre_norm_encoder_layer(causal: bool) -> None:
    block, z = make_block(causal), torch.randn(2, 7, D, dtype=torch.float64)
    torch.testing.assert_close(block(z), encoder_layer(block)(z, src_mask=future(7) if causal else None))


def test_unless_told_attention_has_biases_and_sees_all_tokens_as_pytorchs_does() -> None:
    assert sorted(p.shape for p in Attention(D, H).parameters()) == sorted(
        p.shape for p in nn.MultiheadAttention(D, H).parameters()
    )
    block, z = Block(D, H, 40, activation="gelu", norm_eps=1e-5), torch.randn(2, 7, D)
    torch.testing.assert_close(block(z), encoder_layer(block)(z))
    assert bool((Attention(D, H).weights(z) > 0).all())


@pytest.mark.parametrize(
    ("ours", "definition"),
    [
        (QuickGELU(), lambda x: x / (1 + torch.exp(-1.702 * x))),
        (TanhGELU(), lambda x: x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
        (Mlp(D, 40, "gelu").act, lambda x: x / 2 * (1 + torch.erf(x / math.sqrt(2)))),
        (Mlp(D, 40, "quick_gelu").act, QuickGELU()),
        (Mlp(D, 40, "gelu_tanh").act, lambda x: F.gelu(x, approximate="tanh")),
    ],
)
def test_activations_are_their_formulas(ours: nn.Module, definition) -> None:
    x = torch.linspace(-6, 6, 101, dtype=torch.float64)
    torch.testing.assert_close(ours(x), definition(x))


def test_attention_pool_is_timms() -> None:
    from timm.layers.attention_pool import AttentionPoolLatent

    ours = AttentionPool(D, H, 48, activation="gelu", norm_eps=1e-5).double()
    nn.init.normal_(ours.latent)
    theirs = AttentionPoolLatent(D, num_heads=H, mlp_ratio=2, norm_layer=nn.LayerNorm).double()
    theirs.load_state_dict(ours.state_dict())
    z = torch.randn(2, 9, D, dtype=torch.float64)
    torch.testing.assert_close(ours(z), theirs(z))


def test_the_pool_weights_are_those_of_pytorchs_attention_with_the_query() -> None:
    pool, z = AttentionPool(D, H, 48, activation="gelu", norm_eps=1e-5).double(), torch.randn(2, 9, D).double()
    nn.init.normal_(pool.latent)
    k, v = (half.unflatten(-1, (H, -1)).transpose(1, 2) for half in pool.kv(z).chunk(2, dim=-1))  # (B, h, N, Dh)
    q = pool.q(pool.latent).unflatten(-1, (H, -1)).transpose(1, 2)
    read = pool.weights(z)[:, :, None] @ v  # (B, h, 1, Dh)
    torch.testing.assert_close(read, F.scaled_dot_product_attention(q.expand(2, -1, -1, -1), k, v))
    torch.testing.assert_close(pool.weights(z).sum(-1), torch.ones(2, H).double())


def test_drop_path_keeps_the_mean() -> None:
    rate, samples = 0.3, 20_000
    kept = DropPath(rate).train()(torch.ones(samples, 1, 1))
    assert abs(float(kept.mean()) - 1) < 5 * math.sqrt(rate / (1 - rate) / samples)  # five standard errors


def test_drop_path_leaves_out_whole_samples() -> None:
    out = DropPath(0.5).train()(torch.ones(64, 5, D))
    shares = out.flatten(1)
    assert bool((shares == shares[:, :1]).all())
    assert set(shares[:, 0].tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("train", [True, False])
def test_a_dropped_branch_leaves_the_stream_as_it_was(train: bool) -> None:
    """At rate 0.999999 nearly every branch is gone while training, and none in eval."""
    block, z = make_block(drop_path=0.999999).train(train), torch.randn(4, 7, D, dtype=torch.float64)
    whole = encoder_layer(block).eval()(z)
    torch.testing.assert_close(block(z), z if train else whole)


def test_without_a_rate_drop_path_draws_no_random_numbers() -> None:
    """Else a model trained without it would see other batches."""
    before, branch = torch.get_rng_state(), torch.ones(4, 2, 3)
    assert DropPath(0.0).train()(branch) is branch
    assert DropPath(0.5).eval()(branch) is branch
    assert torch.equal(torch.get_rng_state(), before)


def test_attention_drops_what_it_says_while_training() -> None:
    layer, z = Attention(D, H, dropout=0.5), torch.randn(8, 50, D)
    exact = layer.eval()(z)
    out = layer.train()(z)
    kept = out != 0
    torch.testing.assert_close(out[kept], 2 * exact[kept])
    assert float(kept.float().mean()) == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(out.numel()))


def test_dropout_is_off_in_eval_and_keeps_the_mean_while_training() -> None:
    mlp, z = Mlp(D, 40, "gelu", dropout=0.2), torch.randn(1, 1, D)
    exact = mlp.fc2(mlp.act(mlp.fc1(z)))
    torch.testing.assert_close(mlp.eval()(z), exact)
    many = mlp.train()(z.expand(20_000, 1, D))
    assert not torch.equal(many[0], many[1])
    error = many.std(0) / math.sqrt(len(many))
    assert bool(((many.mean(0) - exact[0]).abs() < 5 * error).all())


def test_blocks_start_as_clips_do() -> None:
    """openai/CLIP model.py: D^-1/2 into q, k, v; (2 D)^-1/2 into the MLP; (2 D L)^-1/2 back into the stream."""
    width, depth = 128, 5
    blocks = nn.ModuleList(Block(width, 2, 4 * width, activation="gelu", norm_eps=1e-5) for _ in range(depth))
    init_blocks(blocks)
    for block in blocks:
        assert_normal(block.get_parameter("attn.qkv.weight"), width**-0.5)
        assert_normal(block.get_parameter("attn.proj.weight"), (2 * width * depth) ** -0.5)
        assert_normal(block.get_parameter("mlp.fc1.weight"), (2 * width) ** -0.5)
        assert_normal(block.get_parameter("mlp.fc2.weight"), (2 * width * depth) ** -0.5)
        for name, p in block.named_parameters():
            if p.ndim == 1:
                assert bool((p == (1 if "norm" in name and "weight" in name else 0)).all()), name


@pytest.mark.parametrize("bias", [False, True])
def test_projections_are_linear_and_start_as_clips_do(bias: bool) -> None:
    layer, x = projection("linear_bias" if bias else "linear", 200, 100), torch.randn(3, 200)
    assert_normal(layer.get_parameter("weight"), 200**-0.5)
    assert set(dict(layer.named_parameters())) == ({"weight", "bias"} if bias else {"weight"})
    torch.testing.assert_close(layer(x), x @ layer.get_parameter("weight").T)  # the bias starts at zero
    if bias:
        assert not bool(layer.get_parameter("bias").any())
    assert projection("none", 200, 200)(x) is x


def assert_normal(weight: Tensor, std: float) -> None:
    """Mean 0 and this standard deviation, within five standard errors."""
    weight, n = weight.detach(), weight.numel()
    assert abs(float(weight.mean())) < 5 * std / math.sqrt(n)
    assert abs(float(weight.std()) - std) < 5 * std / math.sqrt(2 * n)


def test_the_sum_of_all_branches_starts_smaller_than_the_stream() -> None:
    """What the scaling by depth is for: twice the depth, the same size at the end."""
    sizes = []
    for depth in (4, 16):
        blocks = nn.ModuleList(Block(64, 2, 256, activation="gelu", norm_eps=1e-5) for _ in range(depth))
        init_blocks(blocks)
        z = start = torch.randn(2, 16, 64)
        for block in blocks:
            z = block(z)
        sizes.append(float((z - start).detach().std()))
    assert max(sizes) < 1
    assert sizes[1] / sizes[0] == pytest.approx(1, abs=0.25)
