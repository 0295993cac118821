"""Guides against their papers' formulas, on views that are known functions and that count who looks at them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from mmdiff import noise
from mmdiff.errors import UserError
from mmdiff.guidance import (
    Ramp,
    apg,
    as_guide,
    auto,
    away,
    cfg,
    chained,
    clamped,
    dynamic_threshold,
    image_and_text,
    isolation,
    laid_out,
    plain,
    projected,
    shallow,
    squeezed,
    static_threshold,
)
from mmdiff.process import Denoise


def normal(*shape: int, seed: int = 0) -> Tensor:
    return noise.normal(shape, keys=[noise.key(seed)])[0].double()


X, T = normal(3, 2, 5, 4, 4), torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
FLAT = normal(3, 2 * 5 * 4 * 4 + 6, seed=1)
SAID = {name: normal(3, 2, 5, 4, 4, seed=i + 10) for i, name in enumerate(["yes", "no", "bare", "isolated", "weak"])}


class Told:
    """Views that answer with fixed tensors and note that they were asked."""

    device = torch.device("cpu")

    def __init__(self, shapes: dict[str, tuple[int, ...]] | None = None, said: dict[str, Tensor] = SAID) -> None:
        self.shapes, self.said = shapes or {"video": (2, 5, 4, 4)}, said
        self.looked: list[Any] = []

    def look(self, name: str = "yes", *, by: Any = None, skip: Sequence[int] = ()) -> Denoise:
        self.looked.append((name, by, tuple(skip)))
        said = self.said["weak" if by or skip else name]
        return lambda x, t: said


JOINT = {"video": (2, 5, 4, 4), "audio": (2, 3)}
FLAT_SAID = {name: normal(*FLAT.shape, seed=i + 20) for i, name in enumerate(["yes", "no", "bare", "isolated", "weak"])}


def joint() -> Told:
    return Told(JOINT, FLAT_SAID)


# ---- scales --------------------------------------------------------------------------------------------------------


def test_a_number_is_plain_guidance_and_one_makes_no_other_view() -> None:
    views = Told()
    torch.testing.assert_close(as_guide(3)(views)(X, T), SAID["no"] + 3 * (SAID["yes"] - SAID["no"]))
    views = Told()
    assert torch.equal(as_guide(1.0)(views)(X, T), SAID["yes"])
    assert views.looked == [("yes", None, ())]


def test_every_modality_has_its_own_scale() -> None:
    yes, no = FLAT_SAID["yes"], FLAT_SAID["no"]
    guided = plain(joint(), scale={"audio": 4.0, "video": 2.0})(FLAT, T)  # in any order
    torch.testing.assert_close(guided[:, :160], (no + 2 * (yes - no))[:, :160])
    torch.testing.assert_close(guided[:, 160:], (no + 4 * (yes - no))[:, 160:])
    with pytest.raises(UserError, match="has to name video, audio; it names video"):
        plain(joint(), scale={"video": 2.0})


def test_the_scale_of_svd_grows_along_the_frames() -> None:
    """Frame 0 is not guided, the last one fully, and each between in proportion."""
    scale = laid_out(Ramp(1.0, 3.0), Told())
    assert isinstance(scale, Tensor) and scale[0, :, 0, 0].tolist() == [1.0, 1.5, 2.0, 2.5, 3.0]
    guided = plain(Told(), scale=Ramp(1.0, 3.0))(X, T)
    torch.testing.assert_close(guided[:, :, 0], SAID["yes"][:, :, 0])
    torch.testing.assert_close(guided[:, :, 4], (SAID["no"] + 3 * (SAID["yes"] - SAID["no"]))[:, :, 4])


def test_a_ramp_runs_along_each_modality_of_a_packed_sample() -> None:
    guided = plain(joint(), scale={"video": 1.0, "audio": Ramp(1.0, 2.0)})(FLAT, T)
    yes, no = FLAT_SAID["yes"], FLAT_SAID["no"]
    torch.testing.assert_close(guided[:, :160], yes[:, :160])
    ramp = torch.tensor([1.0, 1.5, 2.0] * 2).double()
    torch.testing.assert_close(guided[:, 160:], (no + ramp_over(ramp, yes - no))[:, 160:])


def ramp_over(ramp: Tensor, x: Tensor) -> Tensor:
    return torch.cat([x[:, :160], ramp * x[:, 160:]], 1)


# ---- formulas ------------------------------------------------------------------------------------------------------


def test_rescale_restores_each_modality() -> None:
    guided = plain(joint(), scale=7.0, rescale=1.0)(FLAT, T)
    for part in (slice(0, 160), slice(160, 166)):
        torch.testing.assert_close(guided[:, part].std(1), FLAT_SAID["yes"][:, part].std(1))


def test_projection_adds_only_what_stands_upright_on_the_estimate() -> None:
    """Sadat et al. 2024, eq. 7 to 9."""
    yes, no = SAID["yes"].flatten(1), SAID["no"].flatten(1)
    change = yes - no
    along = (change * yes).sum(1, keepdim=True) / (yes * yes).sum(1, keepdim=True) * yes
    for parallel in (0.0, 0.3, 1.0):
        guided = projected(Told(), scale=5.0, parallel=parallel)(X, T).flatten(1)
        torch.testing.assert_close(guided, yes + 4 * (change - along + parallel * along))
    assert ((projected(Told(), scale=5.0)(X, T).flatten(1) - yes) * yes).sum().abs() < 1e-9
    torch.testing.assert_close(projected(Told(), scale=5.0, parallel=1.0)(X, T), plain(Told(), scale=5.0)(X, T))


def test_the_change_is_no_longer_than_its_limit() -> None:
    guided = projected(Told(), scale=2.0, parallel=1.0, limit=3.0)(X, T) - SAID["yes"]
    torch.testing.assert_close(guided.flatten(1).norm(dim=1), torch.full((3,), 3.0).double())
    wide = projected(Told(), scale=2.0, parallel=1.0, limit=1e6)(X, T)
    torch.testing.assert_close(wide, plain(Told(), scale=2.0)(X, T))


def test_momentum_adds_what_came_before() -> None:
    changes = [normal(3, 8, seed=i) for i in range(3)]
    calls = iter(changes)
    zero = torch.zeros(3, 8).double()
    guided = apg(lambda x, t: zero, lambda x, t: -next(calls), scale=2.0, parallel=1.0, momentum=-0.5)
    expected = [changes[0], changes[1] - 0.5 * changes[0], changes[2] - 0.5 * (changes[1] - 0.5 * changes[0])]
    for want in expected:
        torch.testing.assert_close(guided(zero, T), want)


def test_projection_equals_diffusers() -> None:
    guiders = pytest.importorskip("diffusers.guiders.adaptive_projected_guidance")
    yes, no = SAID["yes"].flatten(2).float(), SAID["no"].flatten(2).float()
    theirs = guiders.normalized_guidance(yes, no, 4.0, None, 0.2, 4.0, True)  # it counts what is added: scale - 1
    ours = apg(lambda x, t: yes, lambda x, t: no, scale=5.0, parallel=0.2, limit=4.0)(X, T)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_autoguidance_moves_away_from_whatever_is_weaker() -> None:
    other = object()
    weaker = {"another run": lambda views: views.look(by=other), "fewer blocks": partial(shallow, skip=[1])}
    for weak in weaker.values():
        views = Told()
        guided = auto(views, weak=weak, scale=2.0)(X, T)
        torch.testing.assert_close(guided, SAID["weak"] + 2 * (SAID["yes"] - SAID["weak"]))
        assert {name for name, _, _ in views.looked} == {"yes"}


def test_isolation_is_a_second_direction() -> None:
    yes = FLAT_SAID["yes"]
    guided = isolation(joint(), scale=3.0, apart=2.0)(FLAT, T)
    torch.testing.assert_close(guided, yes + 2 * (yes - FLAT_SAID["no"]) + (yes - FLAT_SAID["isolated"]))
    torch.testing.assert_close(isolation(joint(), scale=3.0, apart=1.0)(FLAT, T), plain(joint(), scale=3.0)(FLAT, T))
    views = joint()
    assert torch.equal(isolation(views, scale=1.0, apart=1.0)(FLAT, T), yes) and len(views.looked) == 1


def test_image_and_text_have_scales_of_their_own() -> None:
    yes, no, bare = SAID["yes"], SAID["no"], SAID["bare"]
    guided = image_and_text(Told(), image=1.5, text=4.0)(X, T)
    torch.testing.assert_close(guided, bare + 1.5 * (no - bare) + 4 * (yes - no))
    torch.testing.assert_close(image_and_text(Told(), image=1.0, text=4.0)(X, T), plain(Told(), scale=4.0)(X, T))


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_two_of_a_kind_are_one(scale: float) -> None:
    yes: Denoise = lambda x, t: SAID["yes"]
    no: Denoise = lambda x, t: SAID["no"]
    want = cfg(yes, no, scale=scale)(X, T)
    torch.testing.assert_close(away(yes, (no, scale))(X, T), want)
    torch.testing.assert_close(chained([no, yes], [scale])(X, T), want)


# ---- thresholds ----------------------------------------------------------------------------------------------------


def loud(scale: float) -> Denoise:
    return lambda x, t: scale * SAID["yes"]


@pytest.mark.parametrize("quantile", [0.9, 0.995])
def test_the_dynamic_threshold_is_diffusers(quantile: float) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(
        thresholding=True, dynamic_thresholding_ratio=quantile, sample_max_value=1e6, clip_sample=False
    )
    x0 = 2 * SAID["yes"].float()
    theirs = scheduler._threshold_sample(x0)
    torch.testing.assert_close(squeezed(lambda x, t: x0, quantile=quantile)(X, T), theirs)


def test_where_the_quantile_is_inside_it_is_exactly_a_clamp() -> None:
    """It still moves the outliers beyond the quantile: no no-op."""
    small = loud(0.5)
    squeezed_small = squeezed(small, quantile=0.9)(X, T)
    assert torch.equal(squeezed_small, clamped(small)(X, T)) and not torch.equal(squeezed_small, small(X, T))


def test_a_bound_of_one_makes_it_a_clamp_at_any_scale() -> None:
    assert torch.equal(squeezed(loud(9.0), quantile=0.995, most=1.0)(X, T), clamped(loud(9.0))(X, T))


@pytest.mark.parametrize("scale", [0.3, 9.0])
def test_the_threshold_stays_inside_and_is_idempotent(scale: float) -> None:
    once = squeezed(loud(scale), quantile=0.995)(X, T)
    assert once.abs().max() <= 1
    assert torch.equal(squeezed(lambda x, t: once, quantile=0.995)(X, T), once)


def test_each_modality_has_a_threshold_of_its_own() -> None:
    views = Told(JOINT, {"yes": torch.cat([9 * FLAT_SAID["yes"][:, :160], 0.1 * FLAT_SAID["yes"][:, 160:]], 1)})
    out = dynamic_threshold(views, quantile=0.99)(FLAT, T)
    torch.testing.assert_close(out[:, 160:], views.said["yes"][:, 160:].clamp(-1, 1))


def test_thresholds_go_around_any_guide() -> None:
    inner: Callable[..., Denoise] = partial(plain, scale=8.0)
    for outer in (static_threshold, dynamic_threshold):
        torch.testing.assert_close(outer(Told(), guide=inner)(X, T), outer(Told(), guide=8.0)(X, T))
    torch.testing.assert_close(static_threshold(Told(), guide=8.0)(X, T), plain(Told(), scale=8.0)(X, T).clamp(-1, 1))
