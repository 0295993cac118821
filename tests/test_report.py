"""The report: one file that needs nothing else, shows what the readers read, and leaves out what a run lacks."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from mmdiff.errors import UserError
from mmdiff.generate import Job, Settings, write
from mmdiff.report import evaluation, figures, gallery, learning, scores, write_report
from mmdiff.world.clip import make_clip
from mmdiff.world.things import TIERS

HOSTILE = "<script>alert(1)</script> & a red ball"


def scene(index: int):
    return make_clip(seed=0, index=index, split="iid", tier=TIERS["cpu"])


def folder_of_clips(out: Path, prompts: dict[str, int]) -> Path:
    """Clips of the world under any prompts, as tools/sample_video.py leaves them."""
    out.mkdir(parents=True)
    for place, (prompt, index) in enumerate(prompts.items()):
        clip = scene(index)
        batch = {
            "video": (torch.from_numpy(clip.video).permute(3, 0, 1, 2) / 127.5 - 1)[None],
            "audio": torch.from_numpy(clip.audio)[None, None],
            "fps": torch.tensor([float(clip.tier.fps)]),
            "rate": clip.tier.rate,
        }
        facts = {"run": "runs/a", "checkpoint": {"step": 5, "hash": "x"}}
        write(batch, 0, Job(place, prompt, str(place)), out, settings=Settings(scale=8), facts=facts)
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "demo"
    prompts = {HOSTILE: 0} | {scene(index).captions[0].text: index for index in (1, 2)}
    folder_of_clips(folder / "clips", prompts)
    (folder / "config.yaml").write_text("data: {}\n")
    rows = [
        {
            "step": n,
            "loss": 1 / n,
            "loss/video": 2 / n,
            "loss/audio": math.nan,
            "step_s": 0.5,
            "held_out": {"video": {"0.1": 1 / n}},
        }
        for n in range(1, 40)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 40, "lo')
    return folder


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.sources = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]


def test_the_page_is_one_file_with_playable_clips_and_no_script(run):
    path = write_report(run, clips=[run / "clips"], count=0, progress=False)
    page = Links()
    page.feed(path.read_text(encoding="utf-8"))
    assert path == run / "report.html" and page.tags.count("video") == 3 and "script" not in page.tags
    assert all(source.startswith("data:") for source in page.sources)
    assert "Held-out error of video" in path.read_text() and "t = 0.1" in path.read_text()
    assert "&lt;script&gt;" in path.read_text() and "$" not in path.read_text()


def test_a_true_caption_is_found_true_in_the_file_that_the_page_plays(run):
    text = write_report(run, clips=[run / "clips"], count=0, progress=False).read_text(encoding="utf-8")
    assert text.count('class="yes"') > 6 and 'class="no"' not in text


def test_a_run_without_clips_log_or_manifest_still_has_a_report(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "data: {kind: clips, path: absent, frames: 8, fps: 8, size: [16, 16], rate: 8000}\n"
    )
    text = write_report(tmp_path, progress=False).read_text(encoding="utf-8")
    assert "No folder of clips" in text and "Left out" in text and "Nothing was logged" in text


def test_what_the_user_can_mend_is_a_user_error(tmp_path, run):
    with pytest.raises(UserError, match="is not a run"):
        write_report(tmp_path)
    with pytest.raises(UserError, match="holds no clips"):
        write_report(run, clips=[tmp_path], count=0, progress=False)


@pytest.mark.parametrize("low, high", [(0, 1), (-3.2, 0.1), (17, 23_000), (0.001, 0.00101)])
def test_ticks_are_round_few_and_inside(low, high):
    marks = figures.ticks(low, high)
    assert 2 <= len(marks) <= 7 and low - 1e-9 <= marks[0] and marks[-1] <= high + 1e-9
    assert np.allclose(np.diff(marks), marks[1] - marks[0])


def test_ticks_of_a_logarithmic_axis_are_round_numbers():
    assert [round(10**mark, 3) for mark in figures.decades(math.log10(0.15), math.log10(1.1))] == [0.2, 0.5, 1]
    assert len(figures.decades(-4, 3)) == 8 and len(figures.decades(0.31, 0.33)) > 1


def test_curves_leave_out_what_is_not_a_number():
    assert "polyline" not in figures.curves({"a": [(1, math.nan), (2, -1.0)]}, x="step")
    drawn = figures.curves({"a": [(1, 1.0), (2, math.nan), (3, 0.1)], "b": [(1, 2.0)]}, x="step")
    assert drawn.count("polyline") == 2 and "nan" not in drawn


def test_every_line_is_drawn_however_many_there_are():
    drawn = figures.curves({f"line {n}": [(1, 1.0), (2, 2.0)] for n in range(9)}, x="step")
    assert drawn.count("polyline") == 9 and all(f"line {n}<" in drawn for n in range(9))


def test_levels_of_noise_have_plots_of_their_own(tmp_path):
    row = {"step": 1, "loss": 1.0, "loss/video": 0.5, "loss/video@0.1": 0.2, "loss/video@0.9": 0.8}
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row | {"step": n}) + "\n" for n in (1, 2)))
    page = learning.section(tmp_path)
    assert page.count("<h3>") == 2 and page.count("polyline") == 3 and "t = 0.9" in page and "@" not in page


def test_marks_stand_where_their_seconds_are():
    drawn = figures.sound(torch.rand(8, 20), seconds=2.0, onsets=[0.5], impacts=[1.0, 1.5])
    assert f'x1="{figures.WIDTH / 4:.1f}"' in drawn and f"M{figures.WIDTH / 2:.1f}" in drawn


def test_the_smoothed_loss_of_a_constant_is_the_constant_and_a_nan_breaks_nothing():
    (points,) = learning.smooth({"loss": [(n, math.nan if n == 3 else 2.0) for n in range(9)]}).values()
    assert len(points) == 8 and all(value == pytest.approx(2.0) for _, value in points)


def test_log_mel_is_loudest_at_the_band_and_the_time_of_a_tone():
    rate = 8000
    time = torch.arange(2 * rate) / rate
    tone = torch.where(time > 1, torch.sin(2 * math.pi * 440 * time), 0.0)
    picture = gallery.log_mel(tone, rate=rate)
    assert picture.max() == 1 and picture[:, : picture.shape[1] // 3].max() == 0
    assert picture.mean(1).argmax() < len(picture) / 2 and gallery.log_mel(0 * tone, rate=rate).max() == 0


def result(value: float = 0.5) -> dict:
    entry = {"value": value, "low": None, "high": None, "n": 3}
    rows = {name: {"facts": entry, "sync_cost_ms": entry | {"value": None}} for name in ("oracle", "codec", "model")}
    protocol = {"n": 3, "split": "iid", "seeds": [1], "run": HOSTILE, "checkpoint": {"step": 5}, "cautions": ["few"]}
    return {"protocol": protocol, "rows": rows | {"silent": rows["model"]}, "per_clip": {}, "nearest": []}


def test_the_table_names_anchors_and_nulls_and_leaves_out_what_no_row_knows():
    text = scores.table(result()["rows"], scores.COLUMNS)
    assert text.count("<tr") == 5 and text.count("class=model") == 1 and "sync cost" not in text
    assert "ground truth, through the codec" in text and "null: silent" in text
    assert "Caution: few" in scores.note(result()["protocol"])


def test_two_models_share_one_table():
    both = scores.merged({"a": result(0.1), "b": result(0.2)})
    assert list(both["rows"]) == ["oracle", "codec of a", "a", "codec of b", "b", "silent"]
    assert both["rows"]["b"]["facts"]["value"] == 0.2 and both["protocol"]["run"] == ["a", "b"]


def test_models_made_differently_are_said_to_be():
    one, other = result(), result()
    one["protocol"] |= {"steps": 25, "guidance": 2.0}
    other["protocol"] |= {"steps": 25, "guidance": 3.0}
    same, mixed = (scores.note(scores.merged({"a": one, "b": b})["protocol"]) for b in (one, other))
    assert ", steps 25, guidance 2.0" in same and same.count("guidance") == 1
    assert "a with steps 25, guidance 2.0; b with steps 25, guidance 3.0" in mixed
    one["protocol"] |= {"sampler": {"kind": "ancestral", "eta": 1.0}}
    assert "sampler ancestral:eta=1.0, steps 25" in scores.note(one["protocol"]), "as the command line takes it"


def test_an_evaluation_is_a_page_with_nearest_pairs_and_no_markup_of_strangers():
    one = scene(0)
    clip = (one.video, one.audio, 8.0, 8000)
    kinds = ("video", "audio")
    looked = [(clip, clip, {"clip": 0, "training": 7, "modality": kind, "distance": 0.25}) for kind in kinds]
    text = evaluation.render(result(), looked, title=HOSTILE)
    assert "<script>" not in text and text.count("training clip 7") == 2 and "distance 0.25" in text
