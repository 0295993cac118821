"""The two closed vocabularies that travel through the house: what a clip is, and what a network is told about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from torch import Tensor


class Batch(TypedDict, total=False):
    """Clips as the data set gives them and as `generate` returns them; an image is a one-frame video.

    Frame k is shown at (k + 0.5) / fps seconds and sample n is heard at n / rate, both from the start of the window.
    A clip without a modality holds zeros there and False in `valid`: absence is never presented as silence.
    """

    video: Tensor  # (b 3 t h w) float32 in [-1, 1]
    audio: Tensor  # (b 1 n) float32 in [-1, 1]
    text: list[str]  # b captions
    negative: list[str]  # b texts that guidance moves away from, instead of from the empty one
    fps: Tensor  # (b,) frames per second
    frame: Tensor  # (b 3 h w) pictures that the clips are told to begin with; `held` is what they do begin with
    said: Tensor  # (b,) bool, False where nothing is to be said of the clip, as in the null condition
    motion: Tensor  # (b,) picture widths a second that things are to move, where it is asked for
    rate: int  # audio samples per second, the same for the whole batch
    valid: dict[str, Tensor]  # "video", "audio" -> (b,) bool
    id: list[str]  # b stable names; with the seed and the step they determine every random draw
    shape: ClipShape  # of clips that are still to be made
    parts: list[Batch]  # of a packed batch: the clips of each shape, largest first; id and text are those of all parts
    budget: int  # of a packed batch: the tokens by which the sum of all tokens' errors is divided
    chance: Tensor  # (b,) a number in (0, 1) for what a network decides at random; 0 where nobody drew it
    held: dict[str, Tensor]  # modality -> bool over latents (b 1 t h w) or (b 1 n), True where the clip is given
    latents: dict[str, Tensor]  # modality -> latents (b c ...) of what is held or learned, instead of its clips
    encoded: ClipShape  # of clips that are there as latents alone
    embedded: dict[str, dict[str, Tensor]]  # text encoder -> caption -> (l e), what it said of captions before


class Cond(TypedDict, total=False):
    """A condition keyed by its route into the network, never by its source."""

    tokens: Tensor  # (b l d) attended to by cross-attention
    mask: Tensor  # (b l) bool, True where a token is real
    vector: Tensor  # (b d) added to the time embedding
    concat: Tensor  # (b c ...) concatenated to the input's channels
    shapes: dict[str, tuple[int, ...]]  # modality -> shape of one clip's latent
    seconds: dict[str, Tensor]  # modality -> (b t) midpoint in seconds of every latent time step
    valid: dict[str, Tensor]  # modality -> (b,) bool
    chance: Tensor  # (b,) as in the batch; a pass with the same one is the same pass
    skip: Sequence[int]  # blocks that stand aside, for a weaker answer


@dataclass(frozen=True)
class ClipShape:
    """The shape of one clip: frames of size (h, w) at fps, and rate audio samples a second over the same window."""

    frames: int
    fps: float
    size: tuple[int, int]
    rate: int

    @property
    def seconds(self) -> float:
        """The length of the window."""
        return self.frames / self.fps

    @property
    def samples(self) -> int:
        """Audio samples in the window."""
        return round(self.frames / self.fps * self.rate)
