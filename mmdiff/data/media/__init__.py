"""Files to tensors and back: the only folder that imports PyAV, decord and torchaudio's resampler.

The one idea: a window is `[start, start + seconds)` of the presentation, in picture and in sound alike. Frames are
chosen by their time stamps, never by index, and samples are placed by theirs, so that both cover the same seconds.
Second 0 is when the first picture appears (where there is no picture, when the first sample is heard).
"""

from mmdiff.data.media.files import AUDIO, IMAGES, VIDEO, BadMedia, Facts, load, probe, resample
from mmdiff.data.media.read import read_audio, read_image, read_video
from mmdiff.data.media.write import pixels, write_any, write_clip, write_png, write_wav

__all__ = [
    "AUDIO", "IMAGES", "VIDEO", "BadMedia", "Facts", "load", "pixels", "probe", "read_audio", "read_image",
    "read_video", "resample", "write_any", "write_clip", "write_png", "write_wav",
]  # fmt: skip
