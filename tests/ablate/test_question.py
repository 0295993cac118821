"""Questions: what they expand to, that a cell's command says the same as the file, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmdiff.ablate import question as questions
from mmdiff.ablate.budget import Cost, adjusted, refuse
from mmdiff.ablate.question import Budget
from mmdiff.config import read
from mmdiff.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
BASE = f"base: {CONFIGS / 'sounding_objects' / 'smoke.yaml'}\n"


def ask(tmp_path: Path, text: str) -> questions.Question:
    (tmp_path / "q.yaml").write_text(BASE + text)
    return questions.read(tmp_path / "q.yaml")


def test_a_question_is_every_arm_with_every_seed(tmp_path: Path) -> None:
    text = "vary: {system.denoiser.net.depth: [2, 3], name: {a: {}, b: {batch: 4}}}\nseeds: [5, 6]\n"
    asked = ask(tmp_path, text)
    assert [arm.name for arm in asked.arms] == ["depth=2,a", "depth=2,b", "depth=3,a", "depth=3,b"]
    assert [cell.name for cell in asked.cells()][3:5] == ["depth=3,b-s5", "depth=2,a-s6"]
    assert asked.arms[3].changes == {"system.denoiser.net.depth": 3, "batch": 4}


def test_the_command_says_what_the_file_says(tmp_path: Path) -> None:
    """Keys of the file, of the arm and the seed arrive by the command line: nested ones, lists and whole parts."""
    text = (
        "steps: 7\nsystem: {drop: 0.25, conditioner: {width: 64}}\nsample: {prompts: ['a red ball: falls, \"so\"']}\n"
        "vary: {c: {a: {}, b: {system.coupling: {kind: shifted_coupling, factors: {audio: 2.0}}}}}\nseeds: [3]\n"
    )
    asked = ask(tmp_path, text)
    cell = asked.cells()[1]
    words = cell.command(asked.base, tmp_path / "run", steps=7)
    tree = read(words[2] if Path(words[2]).is_absolute() else questions.ROOT / words[2], words[3:])
    own = read(tmp_path / "q.yaml", ["seed=3"])
    for key in questions.OWN:
        own.pop(key, None)
    own["system"]["coupling"] = {"kind": "shifted_coupling", "factors": {"audio": 2.0}}
    assert tree == own | {"run": str(tmp_path / "run")}
    assert tree["data"]["seed"] == 3, "the order of the data follows the seed"


@pytest.mark.parametrize(
    "text, named",
    [
        ("vary: {}\n", "vary"),
        ("vary: {system.denoiser.net.depht: [1, 2]}\n", "depht"),
        ("vary: {system.denoiser.net.depth: 2}\n", "list of values"),
        ("vary: {system.denoiser.net.depth: [2, 2]}\n", "called the same"),
        ("vary: {x: {a: {}, b: {steps: 30}}}\n", "the same config"),
        ("vary: {seed: [1, 2]}\n", "seeds have a list"),
        ("vary: {x: {a: {}, b: {data.path: elsewhere}}}\n", "different clips"),
        ("vary: {steps: [1, 2], x: {a: {steps: 3}}}\n", "same key"),
        ("vary: {steps: [1, 2]}\nseeds: [1, 1]\n", "seeds must"),
        ("vary: {steps: [1, 2]}\nbudget: {match: minutes}\n", "budget.match"),
        ("vary: {steps: [1, 2]}\njudge: {splt: val}\n", "did you mean 'split'"),
    ],
)
def test_what_is_wrong_is_named(text: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=named):
        ask(tmp_path, text)


def cost(**changes: float) -> Cost:
    values = {
        "parameters": 100,
        "flops_a_step": 1000,
        "memory": 1,
        "seconds_a_step": 1.0,
        "clips_a_step": 8,
        "steps": 60,
    }
    return Cost(**(values | changes))  # type: ignore[arg-type]


def test_unmatched_arms_are_refused_with_the_gap() -> None:
    costs = {"first": cost(), "near": cost(parameters=104), "far": cost(parameters=80, flops_a_step=2000)}
    refuse(costs, Budget(match=["steps"]))
    with pytest.raises(UserError, match=r"far has 80 parameters, 20.0% fewer than first \(100 parameters\); the tol"):
        refuse(costs, Budget(match=["parameters"]))
    with pytest.raises(UserError, match="near has 104 parameters, 4.0% more"):
        refuse(costs, Budget(match=["parameters"], tolerance=0.01))
    with pytest.raises(UserError, match="far has 1.200e.05 training FLOPs, 100.0% more"):
        refuse(costs, Budget(match=["flops"]))


def test_steps_buy_equal_flops_or_equal_time() -> None:
    costs = {"first": cost(), "slow": cost(flops_a_step=2000, seconds_a_step=4.0)}
    assert [c.steps for c in adjusted(costs, Budget(match=["flops"], adjust="steps")).values()] == [60, 30]
    assert [c.steps for c in adjusted(costs, Budget(match=["wall_clock"], adjust="steps")).values()] == [60, 15]
    refuse(adjusted(costs, Budget(match=["flops"], adjust="steps")), Budget(match=["flops"]))
    with pytest.raises(UserError, match="steps can buy"):
        adjusted(costs, Budget(match=["parameters"], adjust="steps"))
