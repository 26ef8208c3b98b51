"""Steps of a template of E2B's, as a Dockerfile of ours."""

from __future__ import annotations

from typing import Any

import pytest

from roost.dialects.e2b.control.bodies import StartBuild
from roost.dialects.e2b.control.recipe import Recipe, recipe
from roost.errors import RoostError
from roost.templates import dockerfile, roosttoml
from roost.templates.plan import Plan

HASH = "a" * 64


def made(cpu: float | None = None, memory: int | None = None, **asked: Any) -> Recipe:
    return recipe(
        StartBuild.model_validate({"fromImage": "e2bdev/base:latest"} | asked), cpu, memory
    )


def test_steps_become_instructions() -> None:
    found = made(
        steps=[
            {"type": "RUN", "args": ["apt-get update\napt-get install -y jq", "root"]},
            {"type": "COPY", "args": ["app/", "/srv/app", "root", "0755"], "filesHash": HASH},
            {"type": "COPY", "args": ["./main.py", "here/"], "filesHash": HASH},
            {"type": "ENV", "args": ["A", 'say "hi"', "B", "$A/b"]},
            {"type": "WORKDIR", "args": ["/srv"]},
            {"type": "USER", "args": ["root"]},
            {"type": "RUN", "args": ["true"]},
        ]
    )
    lines = found.dockerfile.splitlines()
    assert lines[0] == "FROM base"
    assert "USER user" in lines and "WORKDIR /home/user" in lines
    at = next(n for n, line in enumerate(lines) if "apt-get" in line)
    assert lines[at - 1 :: 2][:2] == ["USER root", "USER user"], "back to whom it was"
    assert 'COPY --chown=root --chmod=0755 ["step-1/app", "/srv/app"]' in lines
    assert 'COPY --chown=user ["step-2/main.py", "here/"]' in lines
    assert found.archives == {"step-1": HASH, "step-2": HASH}
    assert lines[-1].startswith("RUN") and lines[-2] == "USER root"
    # It is a Dockerfile.
    assert Plan(dockerfile.parse(found.dockerfile), {}).check() == "base"


@pytest.mark.parametrize(
    ("image", "base"),
    [
        ("e2bdev/base", "base"),
        ("docker.io/e2bdev/base:latest", "base"),
        ("e2bdev/code-interpreter:latest", "code-interpreter"),
        ("python:3.12", "docker://python:3.12"),
        ("registry.example:5000/team/base:1", "docker://registry.example:5000/team/base:1"),
    ],
)
def test_images_of_theirs_are_templates_of_ours(image: str, base: str) -> None:
    assert made(fromImage=image).base == base


def test_a_template_begins_as_it_ended() -> None:
    found = made(fromImage=None, fromTemplate="mine", steps=[{"type": "RUN", "args": ["true"]}])
    assert found.dockerfile.splitlines()[0] == "FROM mine" and "WORKDIR" not in found.dockerfile
    assert found.beginning_with("snapshot:x").dockerfile.startswith("FROM snapshot:x\n")


def test_what_is_started_stands_beside() -> None:
    found = made(2, 512, startCmd='serve "x"', readyCmd="curl -f localhost")
    assert found.roost_toml is not None
    beside = roosttoml.parse(found.roost_toml).config()
    assert beside["start"] == 'serve "x"' and beside["ready"]["command"] == "curl -f localhost"
    assert beside["size"] == {"vcpu": 2.0, "memory_mib": 512}
    assert made().roost_toml is None


def test_a_here_document_is_the_shells() -> None:
    command = "cat <<EOF > /x\nhello\nEOF\ncat <<<word"
    found = dockerfile.parse(made(steps=[{"type": "RUN", "args": [command]}]).dockerfile)
    last = found.instructions[-1]
    assert last.heredocs == () and last.words is not None and last.words[-1] == command


def test_what_is_started_may_be_any_text() -> None:
    said = "echo \U0001f980 \x7f \t \\ 'é'"
    found = made(startCmd=said, readyCmd=said)
    assert found.roost_toml is not None
    beside = roosttoml.parse(found.roost_toml).config()
    assert beside["start"] == said and beside["ready"]["command"] == said


def test_a_templates_name_is_one_word() -> None:
    with pytest.raises(RoostError):
        made(fromImage=None, fromTemplate="mine\nRUN evil")


@pytest.mark.parametrize(
    "step",
    [
        {"type": "RUN", "args": []},
        {"type": "RUN", "args": [" "]},
        {"type": "COPY", "args": ["a", "b"]},
        {"type": "COPY", "args": ["a", "b", "root", "7x"], "filesHash": HASH},
        {"type": "COPY", "args": ["a", "b", "x\nRUN evil"], "filesHash": HASH},
        {"type": "ENV", "args": ["A"]},
        {"type": "ENV", "args": ["A B", "c"]},
        {"type": "ENV", "args": ["A", "b\nRUN evil"]},
        {"type": "WORKDIR", "args": ["/a\nRUN evil"]},
        {"type": "USER", "args": ["root\nRUN evil"]},
    ],
)
def test_what_no_step_can_be_is_refused(step: dict[str, Any]) -> None:
    with pytest.raises(RoostError) as found:
        made(steps=[step])
    assert found.value.code == "VALIDATION_FAILED"


def test_unknown_steps_and_clouds_registries_are_not_served() -> None:
    with pytest.raises(RoostError) as found:
        made(steps=[{"type": "HEALTHCHECK", "args": []}])
    assert found.value.code == "UNSUPPORTED"
    with pytest.raises(RoostError) as found:
        made(fromImage="x.example/y", fromImageRegistry={"type": "aws"})
    assert found.value.code == "UNSUPPORTED"
    given = {"type": "registry", "username": "u", "password": "p"}
    found_ = made(fromImage="x.example/y", fromImageRegistry=given)
    assert found_.credentials == {"x.example": {"username": "u", "password": "p"}}
