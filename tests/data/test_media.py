"""Reading and writing: time, size, colour and sound come out as they went in, and damage is an error."""

from __future__ import annotations

import hashlib
import resource
import wave
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

from mmdiff import noise
from mmdiff.data import media
from mmdiff.data.media import BadMedia
from mmdiff.data.media.read import fit
from mmdiff.errors import UserError

KINDS = {  # suffix -> picture codec, sound codec
    "mp4": ("libx264", "aac"),
    "mov": ("libx264", "aac"),
    "mkv": ("libx264", "flac"),
    "webm": ("libvpx-vp9", "libopus"),
    "avi": ("mpeg4", "pcm_s16le"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_container_by_time_stamp(kind: str, studio: SimpleNamespace, tmp_path: Path) -> None:
    """24 fps read at 8: the frames on screen at (k + 1/2) / 8 s; the click stays where the flash would be."""
    video, audio = KINDS[kind]
    path = studio.encode(
        tmp_path / f"a.{kind}", studio.grey(48, 64, 96), studio.click(2, 48000, [1.0], 2), video=video, audio=audio
    )
    facts = media.probe(path)
    assert facts.size == (64, 96) and facts.channels == 2 and facts.rate == 48000 and facts.picture and facts.sound
    assert facts.picture[1] == pytest.approx(2, abs=0.06) and facts.sound[1] == pytest.approx(2, abs=0.03)
    images = media.read_video(path, start=0, fps=8, frames=15)
    expected = [int((k + 0.5) / 8 * 24) for k in range(15)]
    shift = 0 if kind != "avi" else 1  # mpeg4 in avi has no time stamps: its first frame stays for two
    assert all(abs(got - want) <= shift for got, want in zip(studio.index_of(images), expected))
    sound = media.read_audio(path, start=0.5, seconds=1, rate=16000)
    assert sound.shape == (1, 16000) and abs(int(sound.abs().argmax()) / 16000 - 0.501) < 0.004
    assert torch.equal(media.read_video(path, start=0, fps=8, frames=15, reader="decord"), images)


@pytest.mark.parametrize("start", [0.0, 0.31, 1.37])
def test_windows_agree_however_they_are_reached(start: float, ordinary: Path, studio: SimpleNamespace) -> None:
    """A window read after a seek holds the frames and the samples that a reading from the start has there."""
    images = media.read_video(ordinary, start=start, fps=24, frames=24)
    assert studio.index_of(images) == [int((start + (k + 0.5) / 24) * 24 + 0.03) for k in range(24)]
    whole = media.read_audio(ordinary, start=0, seconds=2.5, rate=48000)
    part = media.read_audio(ordinary, start=start, seconds=1, rate=48000)
    first = round(start * 48000)
    assert torch.equal(part, whole[:, first : first + 48000])
    assert torch.equal(images, media.read_video(ordinary, start=start, fps=24, frames=24, reader="decord"))


def test_a_long_song_is_reached_by_a_seek(studio: SimpleNamespace, tmp_path: Path) -> None:
    for name, codec in {
        "a.m4a": "aac",
        "a.flac": "flac",
        "a.wav": "pcm_s16le",
        "a.mp3": "libmp3lame",
        "a.ogg": "libopus",
    }.items():
        path = studio.encode(tmp_path / name, None, studio.click(20, 48000, [0.5, 12.25]), audio=codec)
        sound = media.read_audio(path, start=12, seconds=1, rate=8000)
        assert abs(int(sound.abs().argmax()) / 8000 - 0.251) < 0.003, name
        assert media.probe(path).picture is None


def test_variable_frame_rate_shows_what_is_on_screen(studio: SimpleNamespace, tmp_path: Path) -> None:
    stamps = [0, 40, 80, 500, 540, 1000, 1700, 1740]
    path = studio.encode(tmp_path / "v.mkv", studio.grey(8, 48, 64), stamps=stamps)
    images = media.read_video(path, start=0, fps=10, frames=17)
    expected = [max(i for i, s in enumerate(stamps) if s <= 1000 * (k + 0.5) / 10) for k in range(17)]
    assert studio.index_of(images) == expected
    assert torch.equal(images, media.read_video(path, start=0, fps=10, frames=17, reader="decord"))


def test_rotation_odd_sizes_and_crop(studio: SimpleNamespace, tmp_path: Path) -> None:
    images = np.full((8, 48, 64, 3), 20, np.uint8)
    images[:, :24, :32] = 200  # a bright corner: upper left as stored, upper right once turned clockwise
    path = studio.rotated(studio.encode(tmp_path / "r.mp4", images, fps=8))
    assert media.probe(path).size == (64, 48)
    for reader in ("pyav", "decord"):
        turned = media.read_video(path, start=0, fps=8, frames=8, reader=reader)
        assert turned.shape == (8, 64, 48, 3)
        assert turned[:, 8, 40].min() > 180 and turned[:, 8, 8].max() < 40 and turned[:, 56, 40].max() < 40
    odd = studio.encode(tmp_path / "o.mkv", studio.grey(8, 49, 65), fps=8, video="ffv1", pixels="yuv444p")
    assert media.read_video(odd, start=0, fps=8, frames=8).shape == (8, 49, 65, 3)
    assert media.read_video(odd, start=0, fps=8, frames=8, size=(32, 32)).shape == (8, 32, 32, 3)
    wide = torch.arange(64, dtype=torch.uint8).repeat(32, 1)[..., None].repeat(1, 1, 3)
    for at, first in ((0.0, 0), (0.5, 16), (1.0, 32)):
        assert torch.equal(fit(wide, size=(32, 32), crop=(0.5, at)), wide[:, first : first + 32])
    assert fit(wide, size=(16, 16), crop=(0.5, 0.0))[8].float().diff(dim=0).mean() == pytest.approx(2, abs=0.1)


def test_deep_colour_and_transparency(studio: SimpleNamespace, tmp_path: Path) -> None:
    deep = studio.encode(tmp_path / "d.mkv", studio.grey(8, 48, 64), fps=8, video="ffv1", pixels="yuv420p10le")
    levels = media.read_video(deep, start=0, fps=8, frames=8).float().mean((1, 2, 3))
    assert (levels - (10 + 4 * torch.arange(8))).abs().max() < 3
    rgba = np.full((2, 48, 64, 4), 200, np.uint8)
    rgba[..., 3] = 128
    clear = studio.encode(tmp_path / "t.mkv", rgba, fps=8, video="ffv1", pixels="bgra")
    assert int(media.read_video(clear, start=0, fps=8, frames=2).max()) == 100  # half of it over black


@pytest.mark.parametrize(("channels", "rate"), [(1, 8000), (2, 44100), (6, 48000)])
def test_sound_is_mixed_to_one_channel(channels: int, rate: int, studio: SimpleNamespace, tmp_path: Path) -> None:
    sound = np.zeros((channels, rate * 2), np.float32)
    sound[:] = 0.4 * np.sin(2 * np.pi * 440 * np.arange(rate * 2) / rate)
    path = studio.encode(tmp_path / "s.wav", None, sound, audio="pcm_s16le", rate=rate)
    heard = media.read_audio(path, start=0.25, seconds=1, rate=8000)
    wanted = 0.4 * torch.sin(2 * torch.pi * 440 * (torch.arange(8000) / 8000 + 0.25))
    assert heard.shape == (1, 8000) and (heard[0] - wanted).abs().max() < 0.01


def test_flash_and_clap_are_within_a_frame(studio: SimpleNamespace, tmp_path: Path) -> None:
    """Through our own writer, through AAC at two rates, and through later windows."""
    for rate in (8000, 44100):
        video = torch.zeros(48, 32, 32, 3, dtype=torch.uint8)
        video[30] = 255  # on screen from 1.25 s at 24 fps
        path = tmp_path / "clap.mp4"
        media.write_clip(path, video, fps=24, audio=torch.from_numpy(studio.click(2, rate, [30 / 24])), rate=rate)
        for start in (0.0, 0.5, 1.1):
            flash = int(media.read_video(path, start=start, fps=24, frames=16).float().mean((1, 2, 3)).argmax())
            if start + 16 / 24 > 1.25:
                sound = media.read_audio(path, start=start, seconds=16 / 24, rate=rate)[0].abs()
                clap = int((sound > 0.3).nonzero()[0]) / rate
                assert abs(start + clap - 1.25) < 0.001 and abs(flash / 24 - clap) < 1 / 24


def test_edit_list_moves_picture_and_sound_together(studio: SimpleNamespace, tmp_path: Path) -> None:
    """A stream cut without recoding begins a second late: its edit list hides what lies before."""
    whole = studio.encode(tmp_path / "w.mp4", studio.grey(60, 48, 64), studio.click(2.5, 48000, [2.0]))
    cut = tmp_path / "c.mp4"
    with av.open(str(whole)) as source, av.open(str(cut), "w", options={"avoid_negative_ts": "disabled"}) as out:
        streams = {s.index: out.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                tick = round(1 / packet.time_base)
                packet.pts, packet.dts = packet.pts - tick, packet.dts - tick
                packet.stream = streams[packet.stream.index]
                out.mux(packet)
    facts = media.probe(cut)
    assert facts.picture and facts.picture[1] == pytest.approx(1.5, abs=0.06)
    assert studio.index_of(media.read_video(cut, start=0, fps=8, frames=11)) == [
        24 + int((k + 0.5) * 3) for k in range(11)
    ]
    sound = media.read_audio(cut, start=0, seconds=1.4, rate=48000)[0].abs()
    assert abs(int((sound > 0.3).nonzero()[0]) / 48000 - 1.0) < 0.001


def test_sound_that_ends_early_is_an_error_beyond_the_tolerance(studio: SimpleNamespace, tmp_path: Path) -> None:
    path = studio.encode(tmp_path / "a.wav", None, studio.click(1, 8000, [0.5]), audio="pcm_s16le", rate=8000)
    assert media.read_audio(path, start=0, seconds=1.1, rate=8000).shape == (1, 8800)
    with pytest.raises(BadMedia, match="missing"):
        media.read_audio(path, start=0, seconds=1.3, rate=8000)


@pytest.mark.parametrize("reader", ["pyav", "decord"])
def test_picture_that_ends_early_is_an_error(reader: str, ordinary: Path) -> None:
    with pytest.raises(BadMedia, match="ends at 2.50 s"):
        media.read_video(ordinary, start=2, fps=8, frames=8, reader=reader)


def test_damaged_files_are_named(studio: SimpleNamespace, tmp_path: Path) -> None:
    good = studio.encode(
        tmp_path / "good.mp4",
        studio.moving(48, 96, 128),
        studio.click(2, 48000, [1]),
        options={"movflags": "+faststart"},
    )
    data = good.read_bytes()
    cases = {
        "truncated.mp4": (data[: len(data) * 2 // 3], "truncated"),
        "cut_moov.mp4": (data[:200], "cannot be read|neither"),
        "zero.mp4": (b"", "empty"),
        "text.mp4": (b"this is no film, it is a letter\n" * 50, "cannot be read"),
        "list.mp4": (b"#EXTM3U\n#EXTINF:2,\n/etc/passwd\n#EXT-X-ENDLIST\n", "cannot be read"),
        "text.png": (b"not a picture at all", "not a png"),
        "text.wav": (b"RIFF????WAVEnothing", "cannot be read|neither"),
    }
    for name, (content, reason) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadMedia, match=f"{name}.*({reason})"):
            media.probe(tmp_path / name)
    with pytest.raises(BadMedia, match="gone.mp4"):
        media.probe(tmp_path / "gone.mp4")
    studio.garbled(good)
    with pytest.raises(BadMedia, match="good.mp4"):
        media.read_video(good, start=0, fps=24, frames=47)


@pytest.mark.parametrize("kind", ["mkv", "webm", "avi", "flac", "wav"])
def test_truncation_is_seen_in_every_container_that_states_a_length(
    kind: str, studio: SimpleNamespace, tmp_path: Path
) -> None:
    video, audio = KINDS.get(kind, (None, {"flac": "flac", "wav": "pcm_s16le"}.get(kind)))
    images = studio.moving(48, 64, 64) if video else None
    sound = studio.click(2, 48000, [0.1 * k for k in range(20)])
    path = studio.encode(tmp_path / f"a.{kind}", images, sound, video=video or "", audio=audio)
    media.probe(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadMedia):
        media.probe(path)


def test_bytes_at_random_raise_nothing_but_bad_media(studio: SimpleNamespace, tmp_path: Path) -> None:
    good = studio.encode(tmp_path / "good.mp4", studio.moving(16, 48, 64), studio.click(0.6, 48000, [0.3])).read_bytes()
    for trial in range(40):
        data = bytearray(good)
        for k in range(12):
            data[noise.integer(len(data), key=noise.key("place", trial, k))] = noise.integer(
                256, key=noise.key("byte", trial, k)
            )
        path = tmp_path / "f.mp4"
        path.write_bytes(data)
        try:
            facts = media.probe(path)
            if facts.picture:
                media.read_video(path, start=0, fps=8, frames=4, size=(16, 16))
            if facts.sound:
                media.read_audio(path, start=0, seconds=0.5, rate=8000)
        except BadMedia as error:
            assert "f.mp4" in str(error)


def test_write_clip_is_reproducible_faststart_and_keeps_its_colours(tmp_path: Path) -> None:
    rows = torch.tensor([[230, 25, 25], [25, 230, 25], [25, 25, 230], [230, 230, 25]], dtype=torch.uint8)
    video = rows.repeat_interleave(12, 0)[None, :, None].expand(16, 48, 33, 3).contiguous()
    audio = noise.normal((1, 16000), keys=[0])[0] * 0.1
    for name in ("a.mp4", "b.mp4"):
        media.write_clip(tmp_path / name, video, fps=8, audio=audio, rate=8000)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data == (tmp_path / "b.mp4").read_bytes() and data.index(b"moov") < data.index(b"mdat")
    back = media.read_video(tmp_path / "a.mp4", start=0, fps=8, frames=16)
    assert back.shape == (16, 48, 34, 3)  # an odd width grows by its repeated last column
    inner = back[:, 4::12, 4:29].float().mean((0, 2))  # a row inside each stripe
    assert (inner - rows.float()).abs().max() < 6
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_write_alone(tmp_path: Path) -> None:
    video = torch.full((1, 32, 32, 3), 90, dtype=torch.uint8)
    media.write_clip(tmp_path / "v.mp4", video, fps=8)
    media.write_clip(tmp_path / "a.mp4", None, audio=torch.zeros(2, 10000), rate=10000)
    assert media.probe(tmp_path / "v.mp4").sound is None and media.probe(tmp_path / "a.mp4").picture is None
    assert media.probe(tmp_path / "a.mp4").rate == 11025  # AAC knows no 10 kHz
    with pytest.raises(UserError, match="both are missing"):
        media.write_clip(tmp_path / "n.mp4", None)
    with pytest.raises(UserError, match="uint8"):
        media.write_clip(tmp_path / "n.mp4", video.float(), fps=8)
    with pytest.raises(UserError, match="channels"):
        media.write_clip(tmp_path / "n.mp4", video, fps=8, audio=torch.zeros(6, 100), rate=8000)
    assert not (tmp_path / "n.mp4").exists()


def test_png_and_wav_are_exact(tmp_path: Path) -> None:
    image = (noise.normal((20, 30, 3), keys=[1])[0] * 60 + 128).clamp(0, 255).to(torch.uint8)
    media.write_png(tmp_path / "a.png", image)
    assert torch.equal(media.read_image(tmp_path / "a.png")[0], image)
    audio = torch.linspace(-1, 1, 800)[None]
    media.write_wav(tmp_path / "a.wav", audio, rate=8000)
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getframerate(), file.getsampwidth(), file.getnframes()) == (8000, 2, 800)
    assert (media.read_audio(tmp_path / "a.wav", start=0, seconds=0.1, rate=8000) - audio).abs().max() < 1e-4


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_images_of_every_kind(suffix: str, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.full((49, 65, 3), (200, 60, 20), np.uint8)
    image.fromarray(pixels).save(tmp_path / f"a%d.{suffix}")  # a name that must not be read as a pattern
    read = media.read_image(tmp_path / f"a%d.{suffix}", size=(32, 32))
    assert (
        read.shape == (1, 32, 32, 3) and (read.float().mean((0, 1, 2)) - torch.tensor([200.0, 60, 20])).abs().max() < 4
    )
    assert media.probe(tmp_path / f"a%d.{suffix}").image


def test_sources_stay_as_they_are_and_memory_too(ordinary: Path) -> None:
    before = hashlib.sha256(ordinary.read_bytes()).hexdigest()

    def read(times: int) -> int:
        for k in range(times):
            media.read_video(ordinary, start=0.01 * k, fps=8, frames=4, size=(32, 32))
            media.read_audio(ordinary, start=0.01 * k, seconds=0.5, rate=8000)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    first = read(20)
    assert read(60) - first < 20_000  # kB; RELIABILITY's check of 5,000 decodes, in small
    assert hashlib.sha256(ordinary.read_bytes()).hexdigest() == before
