"""The house as it was drawn: whose packages these are, which way imports go, and what no room is called."""

import ast
import importlib
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from architecture_picture import PICTURE, picture

CHECKOUT = Path(__file__).parents[1]
PURE = ("cluster", "autoscaling", "monitoring")
ROOTS = (*PURE, "deployments")
HEAVY = ("ray", "torch", "fastapi", "starlette", "uvicorn", "transformers", "diffusers", "vllm", "deepspeed", "httpx")
ASKING = "autoscaling.sources"  # the one module of the pure packages that asks others, by httpx
HOMELESS = re.compile("utils?|helpers?|managers?|misc|common", re.IGNORECASE)  # a fact there has no home

modules = [file for root in ROOTS for file in sorted((CHECKOUT / root).rglob("*.py"))]
tests = sorted((CHECKOUT / "tests").rglob("*.py"))


def shown(files: list[Path]) -> list[str]:
    return [str(file.relative_to(CHECKOUT)) for file in files]


@pytest.mark.parametrize("root", ROOTS)
def test_each_root_is_ours_and_nobody_elses(root: str) -> None:
    file = importlib.import_module(root).__file__
    assert file is not None
    assert Path(file).parent == CHECKOUT / root
    claimed_by = importlib.metadata.packages_distributions().get(root, [])  # an editable install claims none
    assert set(claimed_by) <= {"moray"}


@pytest.mark.parametrize("root", ROOTS)
def test_each_root_says_that_it_is_typed(root: str) -> None:
    assert (CHECKOUT / root / "py.typed").is_file()


def test_the_pure_packages_pull_in_nothing_heavy() -> None:
    program = (
        "import importlib, pkgutil, sys\n"
        f"for root in {PURE}:\n"
        "    package = importlib.import_module(root)\n"
        "    for module in pkgutil.walk_packages(package.__path__, root + '.'):\n"
        f"        module.name == {ASKING!r} or importlib.import_module(module.name)\n"
        f"print(*sorted(set({HEAVY}) & set(sys.modules)), len([m for m in sys.modules if m.startswith({PURE})]))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/")
    *heavy, count = ran.stdout.split()
    assert heavy == []
    assert int(count) == sum(file.relative_to(CHECKOUT).parts[0] in PURE for file in modules) - 1


@pytest.mark.parametrize(
    "light", ["deployments.cli", "deployments.plan_table", "deployments.local", "deployments.stores.jobs"]
)
def test_what_runs_before_ray_is_configured_does_not_import_it(light: str) -> None:
    """Serve's modes are chosen by environment variables, which ray reads as it is imported."""
    program = f"import sys, {light}; print('ray' in sys.modules, 'torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/")
    assert ran.stdout.split() == ["False", "False"]


def test_imports_go_one_way() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=CHECKOUT)
    assert ran.returncode == 0, ran.stdout
    assert "2 kept, 0 broken" in ran.stdout


def test_the_picture_shows_the_imports_that_there_are() -> None:
    assert PICTURE.read_text("utf-8") == picture(), "make architecture"


def test_every_file_has_a_home() -> None:
    assert [name for name in shown([*modules, *tests]) if HOMELESS.fullmatch(Path(name).stem)] == []


def test_every_module_says_what_it_is_for() -> None:
    silent = [file for file in modules if file.read_text("utf-8").strip() and not _docstring(file)]
    assert shown(silent) == []


def _docstring(file: Path) -> str | None:
    return ast.get_docstring(ast.parse(file.read_text("utf-8")))


def test_tests_wait_for_events_and_never_sleep() -> None:
    sleepers = [
        file
        for file in tests
        if "bench" not in file.parts and re.search(r"\btime\s*\.\s*sleep\s*\(|from time import .*sleep", _code(file))
    ]
    assert shown(sleepers) == []


def _code(file: Path) -> str:
    """Without comments and docstrings, nor strings at all."""
    tree = ast.parse(file.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    return ast.unparse(tree)


def test_test_folders_are_no_packages() -> None:
    assert shown(list((CHECKOUT / "tests").rglob("__init__.py"))) == []


@pytest.mark.parametrize("root", [*ROOTS, "tests", "k8s"])
def test_the_readme_has_a_line_for_every_package(root: str) -> None:
    assert re.search(rf"^\| \[?{root}\b", (CHECKOUT / "README.md").read_text("utf-8"), re.MULTILINE)


def test_links_between_documents_lead_somewhere() -> None:
    folders = [CHECKOUT / root for root in (*ROOTS, "tests")]
    documents = [CHECKOUT / "README.md", *(file for folder in folders for file in folder.rglob("*.md"))]
    links = [(file, link) for file in documents for link in re.findall(r"\]\(([^)#:\s]+)\)", file.read_text("utf-8"))]
    dangling = [f"{file.relative_to(CHECKOUT)}: {link}" for file, link in links if not (file.parent / link).exists()]
    assert dangling == []


@pytest.mark.parametrize("root", ROOTS)
def test_every_package_has_a_readme_of_a_screen(root: str) -> None:
    """Measured figures and their conditions may follow it."""
    text, *_ = (CHECKOUT / root / "README.md").read_text("utf-8").split("\n## What it is worth")
    assert 5 < len(text.splitlines()) < 80
