"""The Dockerfile by named rules, as no image is built here: each holds, and catches what breaks it."""

import fnmatch
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from k8s.manifests import K8S, ROOT

from cluster.manifest_pods import STATE_FOLDER, USER
from deployments.render import PACKAGES

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
Instruction = tuple[str, str]


def instructions(text: str) -> list[Instruction]:
    """Word and rest of each, without comments, continued lines as one."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n", " ", lines)
    parted = (line.strip().partition(" ") for line in joined.splitlines() if line.strip())
    return [(word.upper(), rest.strip()) for word, _, rest in parted]


def stages(text: str) -> list[list[Instruction]]:
    found: list[list[Instruction]] = []
    for each in instructions(text):
        if each[0] == "FROM":
            found.append([])
        if found:
            found[-1].append(each)
    return found


def pinned_base(text: str) -> Iterator[str]:
    """No image moves under us: a tag other than latest."""
    given = dict(rest.split("=", 1) for word, rest in instructions(text) if word == "ARG" and "=" in rest)
    for stage in stages(text):
        image = re.sub(r"\$\{(\w+)\}", lambda name: given.get(name[1], ""), stage[0][1].split()[0])
        if ":" not in image or image.endswith((":", ":latest")):
            yield f"FROM {image}"


def no_rights(text: str) -> Iterator[str]:
    """The last user is a number that is not root, as runAsNonRoot can judge, and the one of the pods."""
    users = [rest for word, rest in stages(text)[-1] if word == "USER"]
    if not users or users[-1] != f"{USER}:{USER}":
        yield f"USER {users[-1:]}"


def lean_apt(text: str) -> Iterator[str]:
    """Lists are fresh, nothing recommended comes along, and no lists stay in the layer."""
    for word, rest in instructions(text):
        needed = ("apt-get update", "--no-install-recommends", "--yes", "rm -rf /var/lib/apt/lists")
        if word == "RUN" and "apt-get install" in rest and not all(part in rest for part in needed):
            yield rest


def lean_pip(text: str) -> Iterator[str]:
    for word, rest in instructions(text):
        calls = re.findall(r"pip (?:install|wheel)[^;&]*", rest) if word == "RUN" else []
        yield from (call for call in calls if "--no-cache-dir" not in call)


def no_secret(text: str) -> Iterator[str]:
    for word, rest in instructions(text):
        if word in ("ARG", "ENV") and re.search(r"(?i)password|secret|token|_key", rest):
            yield rest


def copied_only(text: str) -> Iterator[str]:
    """COPY, not ADD; by name, never the whole context; nothing of pip in the last stage but what was built."""
    for word, rest in instructions(text):
        if word == "ADD" or (word == "COPY" and rest.split()[0] in (".", "./")):
            yield f"{word} {rest}"


def a_list_to_run(text: str) -> Iterator[str]:
    """Signals reach the process, not a shell."""
    for word, rest in instructions(text):
        if word in ("CMD", "ENTRYPOINT") and not rest.startswith("["):
            yield rest


RULES: dict[Callable[[str], Iterator[str]], tuple[str, str]] = {
    pinned_base: ("FROM python:${PYTHON}\nLABEL", "FROM python\nLABEL"),
    no_rights: ("USER 1000:1000", "USER root"),
    lean_apt: (" --no-install-recommends", ""),
    lean_pip: ("--no-cache-dir --no-deps", "--no-deps"),
    no_secret: ('ARG EXTRAS="[vllm]"', "ARG INDEX_PASSWORD"),
    copied_only: ("COPY cluster cluster", "COPY . ."),
    a_list_to_run: ('CMD ["moray", "--help"]', "CMD moray --help"),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_dockerfile_keeps_a_rule_that_catches_its_breach(rule: Callable[[str], Iterator[str]]) -> None:
    assert list(rule(DOCKERFILE)) == []
    whole, broken = RULES[rule]
    assert whole in DOCKERFILE
    assert list(rule(DOCKERFILE.replace(whole, broken)))


def test_the_pods_find_what_the_image_has() -> None:
    run = " ".join(rest for word, rest in instructions(DOCKERFILE) if word == "RUN")
    minor = next(rest for word, rest in instructions(DOCKERFILE) if word == "ARG").split("=")[1].split("-")[0]
    assert f"/opt/moray/lib/python{minor}/site-packages" == PACKAGES
    assert "python -m venv /opt/moray" in run
    assert STATE_FOLDER in run
    assert f"--uid {USER}" in run


def kept(path: str) -> bool:
    """Whether the build sees a path of the project: the last line of .dockerignore that matches says."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    seen = True
    for line in (line.strip() for line in lines):
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        parts = Path(path).parts
        below = ["/".join(parts[: index + 1]) for index in range(len(parts))]
        deep = [each.removeprefix("**/") for each in (pattern,) if each.startswith("**/")]
        if any(fnmatch.fnmatchcase(each, pattern) for each in below) or any(part in deep for part in parts):
            seen = line.startswith("!")
    return seen


def test_the_build_sees_what_it_copies_and_nothing_else() -> None:
    for word, rest in instructions(DOCKERFILE):
        if word == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists()
                assert kept(source)
    assert kept("deployments/demo/checkpoints/mini/model.safetensors")
    for left_out in (
        ".git/config",
        ".venv/bin/python",
        "tests/conftest.py",
        "cluster/__pycache__/x.pyc",
        ".moray/keys",
    ):
        assert not kept(left_out)


def test_the_wheel_is_built_from_all_packages_that_the_project_names() -> None:
    named = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    packages = yaml.safe_load(next(line for line in named.splitlines() if line.startswith("packages")).split("=")[1])
    copied = {rest.split()[0] for word, rest in instructions(DOCKERFILE) if word == "COPY"}
    assert set(packages) <= copied


def test_the_script_that_needs_a_cluster_says_that_it_was_never_run() -> None:
    assert "NEVER RUN" in (K8S / "kind-e2e.sh").read_text(encoding="utf-8")
