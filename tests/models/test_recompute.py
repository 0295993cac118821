"""Blocks that are computed again in the backward pass: the same numbers bit for bit, and less that is kept for it.

`python tests/models/test_recompute.py` prints what that costs.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import test_dit
import test_joint_dit
import test_joint_unet
import test_unet
import torch
from test_meeting import AUDIO_LIKE, MEETS
from torch import Tensor, nn

from mmdiff.errors import UserError
from mmdiff.models.meeting import Apart
from mmdiff.models.unet import UNet
from mmdiff.train.engine import compile_blocks, recompute_blocks

Case = tuple[nn.Module, Callable[[], Any]]  # a network, and a pass through it


def dit(**changes: Any) -> Case:
    net, given = test_dit.randomised(test_dit.video(**changes)), test_dit.inputs()
    return net, lambda: net(*given)


def packed() -> Case:
    net, (x, t, cond) = test_dit.randomised(test_dit.video(text_width=0)), test_dit.inputs()
    one = {"seconds": {"video": cond["seconds"]["video"][:1]}}
    return net, lambda: net.packed([x[:1], x[1:2]], [t[:1], t[1:2]], [one, one])


def joint_dit(**changes: Any) -> Case:
    net, given = test_joint_dit.randomised(test_joint_dit.joint(**changes)), test_joint_dit.inputs()
    return net, lambda: net(*given)


def unet() -> Case:
    net = test_unet.randomised(UNet(**test_unet.SMALL, temporal="mixed", mix=0.5, text_width=test_unet.TEXT))
    cond = test_unet.told(tokens=test_unet.draw(test_unet.B, 5, test_unet.TEXT))
    return net, lambda: net(test_unet.draw(test_unet.B, 3, 4, 8, 8, k=1), test_unet.TIMES, cond)


def joint_unet() -> Case:
    net, given = test_joint_unet.randomised(test_joint_unet.joint()), test_joint_unet.inputs()
    return net, lambda: net(*given)


CASES: dict[str, Callable[[], Case]] = {
    "dit": partial(dit, attention="factorised", conv=3),
    "dit windowed": partial(dit, attention="windowed"),
    "packed": packed,
    "apart": partial(joint_dit, meet=Apart()),
    **{name: partial(joint_dit, meet=meet) for name, meet in MEETS.items()},
    "shared": partial(joint_dit, video=AUDIO_LIKE, share=["time", "text", "blocks"]),
    "unet": unet,
    "joint_unet": joint_unet,
}


def storages(tensors: Iterable[Any]) -> dict[int, Any]:
    """Whatever the tensors share is there once."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}


def alive() -> dict[int, Any]:
    """Of all tensors that Python can reach, such as what a pass that is to be repeated was given."""
    return storages(t for t in gc.get_objects() if type(t) in (Tensor, nn.Parameter))


def learned(case: Case) -> tuple[list[Tensor | None], int]:
    """What comes out of a pass and every gradient; and the bytes that were kept between the two passes."""
    (net, run), kept = case, []
    net.zero_grad()
    before = alive()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        made = run()
    held = storages(kept) | alive()
    size = sum(storage.nbytes() for place, storage in held.items() if place not in before)
    parts = list(made.values()) if isinstance(made, dict) else [*made] if isinstance(made, list) else [made]
    sum(y.float().square().mean() for y in parts).backward()  # type: ignore[union-attr]
    return [*parts, *(None if p.grad is None else p.grad.clone() for p in net.parameters())], size


def same(ours: list[Tensor | None], theirs: list[Tensor | None]) -> bool:
    pairs = zip(ours, theirs, strict=True)
    return all(a is b is None or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


@pytest.mark.parametrize("name, low", [(name, False) for name in CASES] + [("shared", True), ("joint_unet", True)])
def test_the_same_bit_for_bit_and_less_is_kept(name: str, low: bool) -> None:
    """In float32, and under the autocast of bf16."""
    case = CASES[name]()
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        before, whole = learned(case)
        recompute_blocks(case[0])
        after, less = learned(case)
    assert same(before, after)
    assert less < 0.5 * whole


def test_compiled_blocks_can_be_computed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled without a break of the graph, they give the numbers that compiled blocks give once."""
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    case = dit(depth=1)
    compile_blocks(case[0])
    before, whole = learned(case)
    recompute_blocks(case[0])
    after, less = learned(case)
    assert same(before, after) and less < 0.5 * whole


def test_a_system_without_such_methods_is_refused() -> None:
    with pytest.raises(UserError, match="engine.checkpoint_activations"):
        recompute_blocks(nn.Linear(1, 1))
    with pytest.raises(UserError, match="engine.compile"):
        compile_blocks(UNet(**test_unet.SMALL))  # found: U-Nets were left as they are, and nobody was told


def price(name: str, case: Case, rounds: int = 3) -> None:
    """Print what computing twice costs in CPU time, the least of some rounds, and what it saves."""

    def least() -> tuple[float, int]:
        took, size = [], 0
        for _ in range(rounds):
            began = time.process_time()
            size = learned(case)[1]
            took.append(time.process_time() - began)
        return min(took), size

    (before, whole), _ = least(), recompute_blocks(case[0])
    after, less = least()
    print(f"{name}: {after / before:.2f} of the time, {less / 1e6:.1f} instead of {whole / 1e6:.1f} MB")


if __name__ == "__main__":
    torch.set_num_threads(1)
    net = test_dit.randomised(test_dit.video(width=192, depth=6, heads=6))
    given = test_dit.inputs((4, 8, 16, 16))
    price("dit", (net, lambda: net(*given)))
    frames = test_unet.randomised(UNet(**{**test_unet.SMALL, "widths": [32, 64]}, temporal="mixed", mix=0.5))
    clip, cond = test_unet.draw(test_unet.B, 3, 8, 32, 32), test_unet.told(8)
    price("unet", (frames, lambda: frames(clip, test_unet.TIMES, cond)))
