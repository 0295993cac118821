"""Our transformer with the parts of DiT and of Latte is diffusers' with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmdiff import noise
from mmdiff.batch import Cond
from mmdiff.layers.rope import grid_sincos
from mmdiff.models.block import Style
from mmdiff.models.dit import DiT

WIDTH, HEADS = 48, 4
OLD = Style(norm="layer", mlp="gelu", qk="none", positions="sincos")
SHAPE: dict[str, Any] = {"channels": 4, "width": WIDTH, "heads": HEADS, "patch": (1, 2, 2), "ratio": 4, "style": OLD}
REFERENCE: dict[str, Any] = {
    "num_attention_heads": HEADS,
    "attention_head_dim": WIDTH // HEADS,
    "in_channels": 4,
    "attention_bias": True,
    "sample_size": 8,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
}


class Fixed(nn.Module):
    """The reference's own embedding of time and label, which no two code bases share."""

    def __init__(self, c: Tensor) -> None:
        super().__init__()
        self.c = c

    def forward(self, _: Tensor) -> Tensor:
        return self.c


def drawn(net: Any) -> Any:
    """Weights that say something everywhere."""
    for i, p in enumerate(net.parameters()):
        p.data.copy_(noise.normal(p.shape, keys=[noise.key("weights", i)])[0] * (0.2 if p.ndim > 1 else 0.1))
    return net.eval()


def copy(layer: Any, *parts: Any) -> None:
    """Linear layers side by side as one."""
    layer.weight.data.copy_(torch.cat([part.weight.flatten(1) for part in parts]))
    layer.bias.data.copy_(torch.cat([part.bias for part in parts]))


def copy_block(block: Any, theirs: Any) -> None:
    copy(block.attention.qkv, theirs.attn1.to_q, theirs.attn1.to_k, theirs.attn1.to_v)
    copy(block.attention.out, theirs.attn1.to_out[0])
    copy(block.mlp.up, theirs.ff.net[0].proj)
    copy(block.mlp.down, theirs.ff.net[2])


def copy_ends(net: DiT, theirs: Any, out: Any) -> None:
    patch = theirs.pos_embed.proj
    net.branch.embed.weight.data.copy_(patch.weight.permute(0, 2, 3, 1).flatten(1))  # (d c p p) -> (d (p p c))
    net.branch.embed.bias.data.copy_(patch.bias)
    copy(net.branch.out, out)


@torch.no_grad()
def test_equal_to_the_image_dit_of_diffusers() -> None:
    from diffusers import DiTTransformer2DModel

    theirs = drawn(DiTTransformer2DModel(num_layers=3, num_embeds_ada_norm=10, **REFERENCE))
    for block in theirs.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(theirs.transformer_blocks[0].norm1.emb.state_dict())
    x, t, label = noise.normal((4, 8, 8), keys=[0, 1]), torch.tensor([7, 900]), torch.tensor([3, 9])
    net = DiT(depth=3, attention="full", **SHAPE)
    net.time = Fixed(theirs.transformer_blocks[0].norm1.emb(t, label, hidden_dtype=x.dtype)[:, None, None, None])
    copy_ends(net, theirs, theirs.proj_out_2)
    copy(net.branch.modulation, theirs.proj_out_1)
    for ours, block in zip(net.branch.blocks, theirs.transformer_blocks, strict=True):
        copy_block(ours, block)
        copy(ours.modulation, block.norm1.linear)
    y = net(x[:, :, None], torch.zeros(2), Cond(seconds={"video": torch.zeros(2, 1)}))
    want = theirs(x, t, label).sample
    assert want.std() > 0.1
    torch.testing.assert_close(y[:, :, 0], want, rtol=1e-5, atol=1e-5)


class Table(nn.Module):
    """Latte's last modulation: a table plus the embedding itself."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, _: Tensor) -> Tensor:
        return self.value


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 3])
def test_equal_to_the_latte_of_diffusers(frames: int) -> None:
    """Text included. Latte adds its table of frames after the first spatial block, which is left out of both."""
    from diffusers import LatteTransformer3DModel

    single = {"norm_type": "ada_norm_single", "num_embeds_ada_norm": 1000}
    theirs = drawn(
        LatteTransformer3DModel(
            num_layers=2, cross_attention_dim=WIDTH, caption_channels=6, video_length=frames, **single, **REFERENCE
        )
    )
    theirs.temp_pos_embed.zero_()
    x, t = noise.normal((4, frames, 8, 8), keys=[0, 1]), torch.tensor([7, 900])
    text = noise.normal((5, 6), keys=[2, 3])
    step, c = theirs.adaln_single(t, batch_size=2, hidden_dtype=x.dtype)
    net = DiT(depth=4, attention="factorised", text_width=WIDTH, **SHAPE)
    net.time = Fixed(c[:, None, None, None])
    copy_ends(net, theirs, theirs.proj_out)
    end = (theirs.scale_shift_table[None] + c[:, None]).flatten(1)
    net.branch.modulation = Table(end[:, None, None, None])  # type: ignore[assignment]
    pairs = zip(theirs.transformer_blocks, theirs.temporal_transformer_blocks, strict=True)
    for i, block in enumerate(block for pair in pairs for block in pair):
        ours: Any = net.branch.blocks[i]
        copy_block(ours, block)
        copy(ours.modulation, theirs.adaln_single.linear)
        ours.modulation.bias.data += block.scale_shift_table.flatten()
        if block.attn2 is not None:
            copy(ours.text.q, block.attn2.to_q)
            copy(ours.text.kv, block.attn2.to_k, block.attn2.to_v)
            copy(ours.text.out, block.attn2.to_out[0])
    cond = Cond(tokens=theirs.caption_projection(text), seconds={"video": torch.zeros(2, frames)})
    y, want = net(x, torch.zeros(2), cond), theirs(x, t, text).sample
    assert want.std() > 0.1 and step.shape == (2, 6 * WIDTH)
    torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)


def test_the_table_of_positions_is_diffusers() -> None:
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    want = get_2d_sincos_pos_embed(WIDTH, (6, 6), base_size=6, output_type="pt")
    torch.testing.assert_close(grid_sincos((6, 6), WIDTH).flatten(0, 1), want.float(), rtol=1e-5, atol=1e-6)


def test_the_default_parts_are_the_modern_ones() -> None:
    """And each of them is one key away."""
    sizes = {}
    for name, style in {"modern": Style(), "old": OLD, "gelu": Style(mlp="gelu")}.items():
        net = DiT(**{**SHAPE, "depth": 1, "style": style})
        sizes[name] = {n for n, _ in net.named_parameters()}
    assert sizes["modern"] == {n for n, _ in DiT(**{**SHAPE, "depth": 1, "style": Style()}).named_parameters()}
    assert sizes["modern"] - sizes["old"] == {f"branch.blocks.0.attention.norm_{which}.weight" for which in ("q", "k")}
