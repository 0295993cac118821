"""Prompts to files: a clip belongs to its seed and id, memory does not change it, and hostile prompts are harmless."""

from __future__ import annotations

import json
import types

import av
import pytest
import torch

from mmdiff import generate, noise
from mmdiff.data import media
from mmdiff.errors import UserError
from mmdiff.generate import Settings, read_prompts, sample_prompts

CONFIG = {"sample": {"steps": 4, "sampler": "euler"}}


class Dream:
    """A stand-in for a trained system: pure noise by id, and a memory of `room` clips."""

    def __init__(self, room: int = 100, frames: int = 8, sound: bool = True) -> None:
        self.room, self.frames, self.sound, self.sizes = room, frames, sound, []

    def generate(self, batch, *, seed, report, steps, sampler, guidance):
        self.sizes.append(len(batch["id"]))
        if len(batch["id"]) > self.room:
            report(1, steps)
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes.")
        for step in range(steps):
            report(step + 1, steps)
        keys = noise.keys(seed, "dream", 0, batch["id"])
        clips = {
            "video": noise.normal((3, self.frames, 16, 16), keys=keys),
            "fps": torch.full((len(keys),), 8.0),
            "rate": 8000,
        }
        return clips | ({"audio": 0.1 * noise.normal((1, 8000), keys=keys)} if self.sound else {})


@pytest.fixture
def dream(monkeypatch):
    system = Dream()
    info = {"step": 7, "hash": "abc"}
    monkeypatch.setattr(
        generate, "build", types.SimpleNamespace(load=lambda run, *, ema, device: (system, CONFIG, info))
    )
    return system


def make(tmp_path, prompts, **options):
    return sample_prompts("runs/a", prompts, out=tmp_path, devices=["cpu"], progress=False, **options)


def test_a_clip_is_an_mp4_with_sound_and_a_side_file(dream, tmp_path):
    (path,) = make(tmp_path, ["a red ball"], settings=Settings(seed=3, steps=2, scale=2))
    with av.open(str(path)) as clip:
        assert {stream.codec_context.name for stream in clip.streams} == {"h264", "aac"}
        video = clip.streams.video[0]
        assert (video.width, video.height, float(video.average_rate)) == (32, 32, 8)
    side = json.loads(path.with_suffix(".json").read_text())
    assert path.name.startswith("0000-") and side["file"] == path.name
    assert side["prompt"] == "a red ball" and side["seed"] == 3 and side["steps"] == 2
    assert side["checkpoint"] == {"step": 7, "hash": "abc"} and side["rate"] == 8000 and side["frames"] == 8


@pytest.mark.parametrize("frames, sound, suffix", [(1, False, ".png"), (8, False, ".mp4"), (0, True, ".wav")])
def test_what_a_clip_holds_chooses_its_container(dream, tmp_path, frames, sound, suffix, monkeypatch):
    dream.frames, dream.sound = frames or 1, sound
    if not frames:
        whole = dream.generate
        dream.generate = lambda *args, **named: {k: v for k, v in whole(*args, **named).items() if k != "video"}
    assert make(tmp_path, ["x"])[0].suffix == suffix


def test_the_batch_never_changes_a_clip_nor_does_too_little_memory(dream, tmp_path):
    prompts = [f"prompt {n}" for n in range(7)]
    want = [path.read_bytes() for path in make(tmp_path / "a", prompts)]
    for room, batch in ((1, None), (3, 7), (100, 2)):
        dream.room, dream.sizes = room, []
        paths = make(tmp_path / f"{room}", prompts, batch=batch)
        assert [path.read_bytes() for path in paths] == want
        assert dream.sizes[-1] <= room


def test_a_clip_that_does_not_fit_alone_is_an_error_with_its_own_message(dream, tmp_path):
    dream.room = 0
    with pytest.raises(RuntimeError, match="not enough memory"):
        make(tmp_path, ["x"])


def test_progress_ends_at_the_number_of_clips_even_after_a_retreat(dream):
    total = []
    dream.room = 2
    jobs = generate.plan(["a", "b", "c", "d", "e"], 1)
    settings = Settings(steps=3, sampler="euler", guidance=1.0)
    list(generate.generate(dream, jobs, settings=settings, advance=total.append))
    assert sum(total) == pytest.approx(5)


def test_numbers_give_different_clips_and_the_same_seed_the_same_files(dream, tmp_path):
    first = make(tmp_path / "a", ["x", "y"], number=2)
    again = make(tmp_path / "b", ["x", "y"], number=2)
    other = make(tmp_path / "c", ["x", "y"], number=2, settings=Settings(seed=1))
    assert [path.name for path in first] == [path.name for path in again] and len(set(first)) == 4
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    assert {path.read_bytes() for path in first}.isdisjoint(path.read_bytes() for path in other)
    assert len({path.read_bytes() for path in first}) == 4


def test_hostile_prompts_stay_inside_the_folder_under_unique_names(dream, tmp_path):
    prompts = [
        "../../x",
        "a\0b",
        "/etc/passwd",
        "\U0001f534 ball",
        "x" * 10_000,
        "\udcff",
        "",
        "$(true)",
        "a\nb",
        "CON",
    ]
    paths = make(tmp_path / "out", prompts)
    assert len(set(paths)) == len(prompts) == len({path.name.split("-")[0] for path in paths})
    assert all(path.parent == tmp_path / "out" for path in paths) and len(list(tmp_path.iterdir())) == 1
    assert json.loads(paths[0].with_suffix(".json").read_text())["prompt"] == "../../x"


def test_pixels_are_rounded_clamped_and_enlarged_by_repetition():
    video = torch.tensor([-2.0, -1, 0, 1, 2, 0.5]).view(1, 1, 1, 6).expand(3, 1, 1, 6)  # (3 t h w)
    assert media.pixels(video)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255, 191]
    assert generate.enlarged(media.pixels(video), 2).shape == (1, 2, 12, 3)


def test_prompt_files(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("# eight of them\n a red ball \n\nein roter Ball\n")
    assert read_prompts(path) == ["a red ball", "ein roter Ball"]
    for content in (b"", b"# nothing\n", b"\xff\xfe\x00"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="prompts.txt"):
            read_prompts(path)
    with pytest.raises(UserError, match="absent.txt"):
        read_prompts(tmp_path / "absent.txt")


def test_what_was_not_chosen_comes_from_the_run_and_is_written_down(dream, tmp_path):
    (path,) = make(tmp_path, ["x"], settings=Settings(sampler="heun"))
    side = json.loads(path.with_suffix(".json").read_text())
    assert (side["steps"], side["sampler"], side["guidance"]) == (4, "heun", 2.0)


def test_what_the_user_can_mend_is_a_user_error(dream, tmp_path):
    for prompts, number in (([], 1), (["x"], 0)):
        with pytest.raises(UserError, match="nothing to make"):
            make(tmp_path, prompts, number=number)
    for device in ("cuda:99", "gpu"):
        with pytest.raises(UserError, match=device):
            sample_prompts("runs/a", ["x"], out=tmp_path, devices=[device], progress=False)
    for settings, complaint in ((Settings(sampler="eular"), "euler"), (Settings(steps=0), "Steps")):
        with pytest.raises(UserError, match=complaint):
            make(tmp_path, ["x"], settings=settings)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        make(tmp_path / "file" / "out", ["x"])


def test_a_mistake_in_another_process_is_the_same_error_here(tmp_path):
    for devices in (["cpu"], ["cpu", "cpu"]):
        with pytest.raises(UserError, match="absent is not a run"):
            sample_prompts(tmp_path / "absent", ["x", "y"], out=tmp_path, devices=devices, progress=False)
