"""The text encoder against its blocks run by hand, one row at a time; packing may not show."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from benchmarks.operations import count
from vlm.config import TextConfig
from vlm.errors import InputError
from vlm.models.text import TextTransformer

EOT = 2
CLIP_LIKE = TextConfig(vocab_size=50, context_length=12, width=24, depth=3, num_heads=3, mlp_dim=48, eot_id=EOT)
PACKED = {
    "causal, eot": CLIP_LIKE,
    "bidirectional, eot": dataclasses.replace(CLIP_LIKE, causal=False),
    "causal, mean": dataclasses.replace(CLIP_LIKE, pool="mean"),
    "bidirectional, mean, then norm": dataclasses.replace(CLIP_LIKE, causal=False, pool="mean", norm_after_pool=True),
}
FULL_ROWS = {
    "SigLIP": dataclasses.replace(CLIP_LIKE, causal=False, pool="last", pad_to_context=True),
    "causal, last": dataclasses.replace(CLIP_LIKE, pool="last", pad_to_context=True),
    "eot": dataclasses.replace(CLIP_LIKE, causal=False, pad_to_context=True),
    "mean": dataclasses.replace(CLIP_LIKE, causal=False, pool="mean", pad_to_context=True),
}
ROWS = [[7, 9, 30, 41, EOT], [5, EOT], [EOT], [8, 8, 11, 12, 13, 14, 15, 16, 17, EOT]]
each_packed = pytest.mark.parametrize("config", PACKED.values(), ids=PACKED.keys())
each_full = pytest.mark.parametrize("config", FULL_ROWS.values(), ids=FULL_ROWS.keys())
each = pytest.mark.parametrize("config", (PACKED | FULL_ROWS).values(), ids=(PACKED | FULL_ROWS).keys())


def model_of(config: TextConfig) -> TextTransformer:
    torch.manual_seed(0)
    model = TextTransformer(config).double().eval()
    for name, p in model.named_parameters():  # as after training: positions matter, norms and biases are not 1 and 0
        if p.ndim == 1 or "embed" in name:
            nn.init.normal_(p)
    return model


def batch_of(rows: list[list[int]], length: int | None = None, padding: int = 0) -> Tensor:
    length = length or max(map(len, rows))
    return torch.tensor([row + [padding] * (length - len(row)) for row in rows])


def by_hand(model: TextTransformer, row: list[int]) -> Tensor:
    """(D,): one row, as in the papers: embed, blocks on (1, T, D), pool."""
    config = model.config
    if config.pad_to_context:
        row = row + [config.pad_id] * (config.context_length - len(row))
    z = (model.token_embed.weight[row] + model.pos_embed[: len(row)])[None]
    for block in model.blocks:
        z = block(z)
    if config.pool == "mean":
        return model.norm(z[0].mean(0)) if config.norm_after_pool else model.norm(z[0]).mean(0)
    return model.norm(z[0, row.index(EOT) if config.pool == "eot" else -1])


@each
def test_a_batch_is_each_row_run_by_hand(config: TextConfig) -> None:
    model = model_of(config)
    torch.testing.assert_close(model(batch_of(ROWS)), torch.stack([by_hand(model, row) for row in ROWS]))


@each
def test_rows_that_are_not_packed_give_the_same(config: TextConfig) -> None:
    """As on a GPU whose caller made no packing: nothing waits for the device, and the padding is not read."""
    model, ids = model_of(config), batch_of(ROWS, 12, padding=33 if not config.pad_to_context else 0)
    torch.testing.assert_close(model._padded(ids), model(ids))
    meta = TextTransformer(config).to("meta")
    assert meta(ids.to("meta")).shape == (4, config.width)  # any operation that waits for a number raises there


@each
def test_a_packing_made_by_the_caller_gives_the_same(config: TextConfig) -> None:
    model, ids = model_of(config), batch_of(ROWS, 12)
    torch.testing.assert_close(model(ids, model.packing(ids)), model(ids), rtol=0, atol=0)


@each
def test_neither_way_waits_for_the_device(config: TextConfig) -> None:
    model, ids = model_of(config), batch_of(ROWS, 12)
    packing = model.packing(ids)
    for forward in (lambda: model(ids, packing), lambda: model(ids), lambda: model._padded(ids)):
        assert not count(lambda forward=forward: forward().sum().backward()).synchronisations


@each
def test_the_encoder_compiles_in_one_graph(config: TextConfig) -> None:
    torch.compiler.reset()  # the limit of recompilations counts over all tests
    model, ids = model_of(config), batch_of(ROWS, 12)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    packing = model.packing(ids)
    torch.testing.assert_close(compiled(ids, packing), model(ids))
    torch.testing.assert_close(compiled(ids), model(ids))
    compiled(ids, packing).sum().backward()
    assert model.token_embed.weight.grad is not None


@each
def test_a_row_does_not_know_its_batch_mates(config: TextConfig) -> None:
    model = model_of(config)
    alone = torch.cat([model(batch_of([row])) for row in ROWS])
    torch.testing.assert_close(model(batch_of(ROWS)), alone)
    torch.testing.assert_close(model(batch_of(ROWS[::-1])), alone.flip(0))


@each
def test_padding_up_to_the_context_changes_nothing(config: TextConfig) -> None:
    """In float32, as models run."""
    model = model_of(config).float()
    torch.testing.assert_close(model(batch_of(ROWS)), model(batch_of(ROWS, length=12)), rtol=0, atol=1e-6)


@each_packed
def test_what_lies_behind_end_of_text_is_never_read(config: TextConfig) -> None:
    model = model_of(config)
    torch.testing.assert_close(model(batch_of(ROWS, 12, padding=33)), model(batch_of(ROWS)), rtol=0, atol=0)
    model(batch_of(ROWS, 12, padding=33)).sum().backward()
    assert model.token_embed.weight.grad is not None
    assert not bool(model.token_embed.weight.grad[33].any())


@each_full
def test_models_trained_on_padding_read_it(config: TextConfig) -> None:
    model, row = model_of(config), ROWS[1:2]
    moved = (model(batch_of(row, 12, padding=33)) - model(batch_of(row, 12))).abs().max()
    assert float(moved.detach()) > 1e-3


def test_changing_token_5_leaves_0_to_4_alone() -> None:
    """The causal tower: states of the tokens, packed and last in the batch, before and after."""
    model, row = model_of(CLIP_LIKE), [8, 8, 11, 12, 13, 14, 15, EOT]
    before, after = token_states(model, row), token_states(model, [*row[:5], 40, *row[6:]])
    torch.testing.assert_close(after[:5], before[:5], rtol=0, atol=0)
    assert bool(((after - before)[5:].abs().amax(1) > 1e-3).all())


def token_states(model: TextTransformer, row: list[int]) -> Tensor:
    """What the last block says of this row's tokens, (T, D), with another row before it."""
    states: list[Tensor] = []
    hook = model.blocks[-1].register_forward_hook(lambda _block, _z, out: states.append(out.detach()))
    model(batch_of([[9, 9, EOT], row]))
    hook.remove()
    return states[0][3:]


def test_the_first_end_of_text_is_the_end() -> None:
    model = model_of(CLIP_LIKE)
    ids = torch.tensor([[7, EOT, 9, EOT]])
    assert model.lengths(ids).tolist() == [2]
    torch.testing.assert_close(model(ids), model(ids[:, :2]))


def test_lengths_count_up_to_and_with_end_of_text() -> None:
    assert model_of(CLIP_LIKE).lengths(batch_of(ROWS)).tolist() == [len(row) for row in ROWS]
    assert model_of(FULL_ROWS["eot"]).lengths(batch_of(ROWS, 11)).tolist() == [11] * 4  # the padding is read


@pytest.mark.parametrize("config", [CLIP_LIKE, FULL_ROWS["eot"]], ids=["packed", "full rows"])
def test_a_row_without_end_of_text_is_named(config: TextConfig) -> None:
    with pytest.raises(InputError, match=r"row 1 .*id 2.*tokenizer"):
        model_of(config)(torch.tensor([[5, EOT, 0], [5, 6, 0], [EOT, 5, 0], [6, 6, 6]]))


@pytest.mark.parametrize("shape", [(2, 13), (5,)])
def test_ids_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="T <= 12"):
        model_of(CLIP_LIKE)(torch.full(shape, EOT))


def test_embeddings_start_as_clips_do() -> None:
    """0.02 for tokens, 0.01 for positions (openai/CLIP model.py), within five standard errors."""
    torch.manual_seed(0)
    model = TextTransformer(TextConfig(vocab_size=1000, width=64, depth=1, num_heads=2, mlp_dim=64, eot_id=EOT))
    for p, std in ((model.token_embed.weight.detach(), 0.02), (model.pos_embed.detach(), 0.01)):
        assert abs(float(p.std()) - std) < 5 * std / math.sqrt(2 * p.numel())
        assert abs(float(p.mean())) < 5 * std / math.sqrt(p.numel())
