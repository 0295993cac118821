"""Which entries of a clip are known: masks over latents, drawn in training and asked for in sampling.

The one idea: image to video, extension, inpainting, sound from picture and their like are one model that is told which
entries are clean. Known entries enter at t = 0 and do not count in the loss, so a task is a mask and nothing else.
Masks are made where the model lives, in latent space: with patches of 4 frames the "first frame" is the first latent
step, which is 4 frames. A cut in time falls at the same second in every modality.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mmdiff import noise
from mmdiff.errors import UserError

Masks = dict[str, Tensor]  # modality -> bool, True where known: (1 t h w) or (1 n) for one clip, (b 1 ...) for several
Shapes = Mapping[str, Sequence[int]]  # modality -> shape of one clip's latent, (c t h w) or (c n)
Places = Sequence[float]  # four numbers in (0, 1) that say where a mask lies

# ---- one clip's masks ----------------------------------------------------------------------------------------------


def generate(shapes: Shapes, u: Places) -> Masks:
    """Nothing is known."""
    return {name: torch.zeros(1, *shape[1:], dtype=torch.bool) for name, shape in shapes.items()}


def first_frame(shapes: Shapes, u: Places) -> Masks:
    """The first latent step of the picture; the sound is unknown. Nothing of a picture of one step."""
    return _ends(shapes, before=1, after=0)


def last_frame(shapes: Shapes, u: Places) -> Masks:
    """The last latent step of the picture."""
    return _ends(shapes, before=0, after=1)


def interpolate(shapes: Shapes, u: Places) -> Masks:
    """The first and the last latent step of the picture; nothing of a picture that has no step between them."""
    return _ends(shapes, before=1, after=1)


def extend(shapes: Shapes, u: Places) -> Masks:
    """Picture and sound up to a cut, drawn evenly from the cuts between latent steps of the coarser modality."""
    masks = generate(shapes, u)
    coarse = min(shape[1] for shape in shapes.values())
    cut = 1 + int(u[0] * (coarse - 1)) if coarse > 1 else 0
    for mask in masks.values():
        mask[:, : round(cut / coarse * mask.shape[1])] = True
    return masks


def extend_backward(shapes: Shapes, u: Places) -> Masks:
    """Picture and sound after a cut."""
    return {name: mask.flip(1) for name, mask in extend(shapes, u).items()}


def inpaint(shapes: Shapes, u: Places) -> Masks:
    """The picture but for a box that stands still, a quarter to three quarters of each side; the sound is known."""
    masks = {name: ~mask for name, mask in generate(shapes, u).items()}
    rows, columns = _box(masks["video"].shape[2:], u)
    masks["video"][..., rows, columns] = False
    return masks


def outpaint(shapes: Shapes, u: Places) -> Masks:
    """Such a box of the picture alone; the sound is known."""
    masks = inpaint(shapes, u)
    return masks | {"video": ~masks["video"]}


def inpaint_time(shapes: Shapes, u: Places) -> Masks:
    """Picture and sound but for a stretch inside, a quarter to three quarters of the clip."""
    masks = {name: ~mask for name, mask in generate(shapes, u).items()}
    length = 0.25 + u[0] / 2
    begin = u[1] * (1 - length)
    for mask in masks.values():
        n = mask.shape[1]
        first = min(round(begin * n), n - 1)
        mask[:, first : max(first + 1, round((begin + length) * n))] = False
    return masks


def video_to_audio(shapes: Shapes, u: Places) -> Masks:
    """The whole picture, no sound."""
    return {name: torch.full_like(mask, name == "video") for name, mask in generate(shapes, u).items()}


def audio_to_video(shapes: Shapes, u: Places) -> Masks:
    """The whole sound, no picture."""
    return {name: torch.full_like(mask, name == "audio") for name, mask in generate(shapes, u).items()}


Task = Callable[[Shapes, Places], Masks]
TASKS: dict[str, tuple[Task, tuple[str, ...]]] = {  # name -> the mask, and the modalities that it needs
    "generate": (generate, ()),
    "first_frame": (first_frame, ("video",)),
    "last_frame": (last_frame, ("video",)),
    "interpolate": (interpolate, ("video",)),
    "extend": (extend, ()),
    "extend_backward": (extend_backward, ()),
    "inpaint": (inpaint, ("video",)),
    "outpaint": (outpaint, ("video",)),
    "inpaint_time": (inpaint_time, ()),
    "video_to_audio": (video_to_audio, ("video", "audio")),
    "audio_to_video": (audio_to_video, ("video", "audio")),
    "video_only": (generate, ("video", "audio")),
    "audio_only": (generate, ("video", "audio")),
}
ABSENT = {"video_only": "audio", "audio_only": "video"}  # what these tasks take away, as if the clip had none

# ---- training ------------------------------------------------------------------------------------------------------


def check(odds: Mapping[str, float], modalities: Sequence[str]) -> None:
    """Refuse tasks that there are not, that the modalities do not allow, and odds that are none."""
    for name in odds:
        if name not in TASKS:
            raise UserError(f"tasks: there is no task {name!r}; the tasks are {', '.join(TASKS)}.")
        if missing := set(TASKS[name][1]) - set(modalities):
            raise UserError(f"tasks: {name} needs {' and '.join(sorted(missing))}, which this system does not make.")
    if odds and (min(odds.values()) < 0 or sum(odds.values()) <= 0):
        raise UserError(f"tasks: odds must not be negative, and one must be positive; they are {dict(odds)}.")


def draw(odds: Mapping[str, float], shapes: Shapes, *, seed: int, step: int, ids: Sequence[str]) -> Masks:
    """One task a clip, by odds (any positive numbers) -> name: (b 1 ...); no masks at all where there are no odds."""
    if not odds:
        return {}
    places = torch.stack([noise.uniform(keys=noise.keys(seed, f"task/{i}", step, ids)) for i in range(4)], 1)
    names = chosen(odds, seed=seed, step=step, ids=ids)
    clips = [TASKS[name][0](shapes, u) for name, u in zip(names, places.tolist(), strict=True)]
    return {name: torch.stack([masks[name] for masks in clips]) for name in shapes}


def kept(valid: Mapping[str, Tensor], odds: Mapping[str, float], *, seed: int, step: int, ids: Sequence[str]) -> Masks:
    """The modalities that clips have (b,), less what their tasks take away."""
    gone = [ABSENT.get(name) for name in chosen(odds, seed=seed, step=step, ids=ids)] if odds else [None] * len(ids)
    return {name: here & torch.tensor([g != name for g in gone], device=here.device) for name, here in valid.items()}


def chosen(odds: Mapping[str, float], *, seed: int, step: int, ids: Sequence[str]) -> list[str]:
    """The name of the task of each clip."""
    edges = torch.tensor(list(odds.values())).cumsum(0) / sum(odds.values())
    places = torch.bucketize(noise.uniform(keys=noise.keys(seed, "task", step, ids)), edges[:-1], right=True)
    return [list(odds)[k] for k in places.tolist()]


# ---- small things --------------------------------------------------------------------------------------------------


def within(seconds: Tensor, start: float, end: float) -> Tensor:
    """Which latent steps, of midpoints (t,), lie wholly in [start, end] seconds -> (t,) bool."""
    half = float(seconds[1] - seconds[0]) / 2 if len(seconds) > 1 else float(seconds[0])
    return (seconds - half >= start - 1e-4) & (seconds + half <= end + 1e-4)


def _ends(shapes: Shapes, *, before: int, after: int) -> Masks:
    masks = generate(shapes, ())
    video = masks["video"]
    if video.shape[1] > before + after:
        video[:, :before] = True
        video[:, video.shape[1] - after :] = True
    return masks


def _box(size: Sequence[int], u: Places) -> list[slice]:
    """A box of height and width between a quarter and three quarters of the sides, but one entry at least."""
    slices = []
    for side, length, place in zip(size, u[:2], u[2:], strict=True):
        n = max(1, round(side * (0.25 + length / 2)))
        first = int(place * (side - n + 1))
        slices.append(slice(first, first + n))
    return slices
