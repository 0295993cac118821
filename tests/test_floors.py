"""The laws of the house, read from the source: who may import whom, and who may draw random numbers."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "mmdiff"
FILES = sorted(path.relative_to(HOUSE).as_posix() for path in HOUSE.rglob("*.py"))
TREES = {name: ast.parse((HOUSE / name).read_text(encoding="utf-8")) for name in FILES}

FLOORS = {  # a file's floor is its own, or else its folder's; any file may import the open ones
    **dict.fromkeys(
        [
            "__init__.py",
            "errors.py",
            "config.py",
            "batch.py",
            "process",
            "noise.py",
            "progress.py",
            "files.py",
            "records.py",
            "parts.py",
            "roles.py",
            "layers",
        ],
        0,
    ),
    **dict.fromkeys(["sampling", "losses", "guidance", "coupling.py", "tasks.py", "kinds.py", "data", "world"], 1),
    **dict.fromkeys(["models", "autoencoders", "denoiser.py", "conditioners", "material.py"], 2),
    **dict.fromkeys(["systems", "metrics"], 3),
    **dict.fromkeys(["train"], 4),
    **dict.fromkeys(["build.py"], 5),
    **dict.fromkeys(["export.py", "request.py", "prepare.py", "adapt.py"], 6),
    **dict.fromkeys(["generate.py", "encode"], 7),
    **dict.fromkeys(["evaluate"], 8),
    **dict.fromkeys(["report"], 9),
    **dict.fromkeys(["ablate", "inspection"], 10),
    **dict.fromkeys(["leaderboard.py"], 11),
}
OPEN = {"__init__.py", "errors.py", "batch.py", "progress.py"}
ONLY_IN = {  # a package, and the files or folders that may import it
    "omegaconf": {"config.py"},
    "torch.distributed": {"train"},
    "deepspeed": {"train"},
    "tensorboard": {"train"},
    "torch.utils.tensorboard": {"train"},
    "torchaudio": {"autoencoders/mel.py", "data/media"},
    "av": {"data/media"},
    "decord": {"data/media"},
    "diffusers": set(),  # an oracle of the tests
    "random": set(),
    "numpy.random": {"noise.py"},
}
INSIDE_FUNCTIONS = set("av decord torchaudio deepspeed tensorboard diffusers transformers matplotlib PIL rich".split())
DRAWS = set(
    "rand randn randint randperm rand_like randn_like randint_like normal bernoulli poisson multinomial manual_seed "
    "seed initial_seed set_rng_state default_rng Generator".split()
)
METHODS = set(
    "bernoulli bernoulli_ cauchy_ exponential_ geometric_ log_normal_ multinomial normal_ random_ uniform_ dropout "
    "dropout_ alpha_dropout Dropout Dropout2d Dropout3d AlphaDropout rrelu RReLU gumbel_softmax".split()
)
FRAMEWORKS = {"torch", "np", "numpy", "torch.random", "np.random", "numpy.random", "torch.cuda"}


def unit(name: str) -> str:
    """The house's table of contents names a file of the first level or a folder."""
    return name.split("/")[0]


def dotted(node: ast.AST) -> str:
    """`torch.nn.init` of the expression torch.nn.init; empty if it is anything but names and dots."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (front := dotted(node.value)):
        return f"{front}.{node.attr}"
    return ""


def imports(name: str) -> Iterator[tuple[str, int]]:
    """Every module that a file names in an import, with its line; `from a import b` may mean the module a.b."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ["mmdiff", *name.split("/")[:-1]][: len(name.split("/")) - node.level + 1] if node.level else []
            module = ".".join([*package, *([node.module] if node.module else [])])
            yield module, node.lineno
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


def target(module: str) -> str | None:
    """The file of the house behind a module's name, or None for a name inside a file and for the world outside."""
    path = module.removeprefix("mmdiff").lstrip(".").replace(".", "/")
    if not (module + ".").startswith("mmdiff."):
        return None
    candidates = [f"{path}.py", f"{path}/__init__.py"] if path else ["__init__.py"]
    return next((file for file in candidates if file in TREES), None)


def within(name: str, places: set[str]) -> bool:
    return any(name == place or name.startswith(f"{place}/") for place in places)


def belongs(module: str, package: str) -> bool:
    return (module + ".").startswith(package + ".")


@pytest.mark.parametrize("name", FILES)
def test_imports_point_down(name: str) -> None:
    assert unit(name) in FLOORS, f"give {unit(name)} a floor in {Path(__file__).name}"
    for module, line in imports(name):
        file = target(module)
        if file is None or file in OPEN or (unit(file) == unit(name) and "/" in name):
            continue
        assert FLOORS[unit(file)] < FLOORS[unit(name)], f"mmdiff/{name}:{line} imports {module}, which is not below it"


@pytest.mark.parametrize("name", FILES)
def test_only_the_owner_imports_a_foreign_package(name: str) -> None:
    for module, line in imports(name):
        for package, owners in ONLY_IN.items():
            assert not belongs(module, package) or within(name, owners), f"mmdiff/{name}:{line} imports {module}"


@pytest.mark.parametrize("name", FILES)
def test_foreign_packages_are_not_reached_by_attribute_either(name: str) -> None:
    used = [node for node in ast.walk(TREES[name]) if dotted(node).startswith("torch.distributed.")]
    assert within(name, ONLY_IN["torch.distributed"]) or not used, f"mmdiff/{name}:{used[0].lineno}"


@pytest.mark.parametrize("name", FILES)
def test_heavy_packages_are_imported_inside_functions(name: str) -> None:
    inside = {
        id(node)
        for function in ast.walk(TREES[name])
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(TREES[name]):
        if id(node) in inside or typing_only(name, node) or not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        heavy = [module for module in modules if module.split(".")[0] in INSIDE_FUNCTIONS]
        assert not heavy, f"mmdiff/{name}:{node.lineno} imports {heavy} when it is itself imported"


def typing_only(name: str, node: ast.AST) -> bool:
    blocks = [n for n in ast.walk(TREES[name]) if isinstance(n, ast.If) and dotted(n.test).endswith("TYPE_CHECKING")]
    return any(node is child for block in blocks for child in ast.walk(block))


@pytest.mark.parametrize("name", [name for name in FILES if name != "noise.py"])
def test_nothing_but_noise_draws(name: str) -> None:
    """`build.py` alone may seed torch, for the initial weights, which nn.init and the modules' defaults then draw."""
    allowed = {"manual_seed"} if name == "build.py" else set()
    for node in ast.walk(TREES[name]):
        if not isinstance(node, ast.Call):
            continue
        front, _, last = dotted(node.func).rpartition(".")
        called = node.func.attr if isinstance(node.func, ast.Attribute) else last
        if last in allowed or front.endswith("init"):
            continue
        drawn = called in METHODS if front not in FRAMEWORKS else called in METHODS | DRAWS
        assert not drawn, f"mmdiff/{name}:{node.lineno} draws with {front}.{called}; noise.py owns all randomness"


@pytest.mark.parametrize("name", FILES)
def test_every_file_earns_its_first_paragraph(name: str) -> None:
    assert name.endswith("__init__.py") or ast.get_docstring(TREES[name]), (
        f"mmdiff/{name} does not say what lives in it"
    )


def test_the_laws_see_what_they_forbid() -> None:
    """The readers above, on a file that breaks everything."""
    TREES["models/bad.py"] = ast.parse(
        "import torch.distributed as dist\nfrom ..build import build\nfrom mmdiff import noise, train\n"
        "import av\nx = torch.randn(3)\ny = x.normal_()\nimport numpy.random\n"
    )
    try:
        found = [module for module, _ in imports("models/bad.py")]
        assert {"torch.distributed", "mmdiff.build", "mmdiff.noise", "mmdiff.train", "av", "numpy.random"} <= set(found)
        assert target("mmdiff.noise") == "noise.py" and target("mmdiff.noise.key") is None
        assert target("mmdiff.train") == "train/__init__.py" and target("mmdiffusion.x") is None
        for law in (test_only_the_owner_imports_a_foreign_package, test_heavy_packages_are_imported_inside_functions):
            with pytest.raises(AssertionError):
                law("models/bad.py")
        with pytest.raises(AssertionError, match="torch.randn"):
            test_nothing_but_noise_draws("models/bad.py")
        with pytest.raises(AssertionError, match="not below"):
            test_imports_point_down("models/bad.py")
    finally:
        del TREES["models/bad.py"]
