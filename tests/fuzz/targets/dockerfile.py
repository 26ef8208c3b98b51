"""A Dockerfile, up to the plan of its steps: refused with a line of its own, never otherwise."""

from __future__ import annotations

import json

from roost.errors import InvalidRequestError
from roost.templates.dockerfile import parse
from roost.templates.plan import Plan
from tests.fuzz.targets._pieces import fields

COVERS = ("roost.templates.dockerfile", "roost.templates.plan", "roost.templates.substitute")
SEEDS = (
    b"\x00FROM base\nRUN echo hi\n",
    b'\x03V=1# syntax=docker/dockerfile:1\n# escape=`\nARG V=12\nFROM base AS x\nENV A=$V B="c d"\nRUN a `\n b\nCMD ["a", "b"]\n',
    b"\x00FROM base\nRUN --mount=type=secret,id=a,target=/x <<EOF\nset -e\nEOF\nCOPY --chown=1:2 --chmod=755 a b /c/\n",
    b"\x00FROM base@sha256:"
    + b"0" * 64
    + b"\nEXPOSE 80 443/tcp 100-110\nWORKDIR ../x\nUSER a:b\nSTOPSIGNAL 9\n",
    b"\x00FROM docker://r.example/a/b:t\nHEALTHCHECK --interval=1m30s --retries=3 CMD true\nLABEL a=\"b\" c='d'\nVOLUME /x\n",
    b'\x00FROM base\nCOPY <<-\'E\' <<F /x/\n\ta\n\tE\nb\nF\nENV x=${A:-b} y=${A:+c} z=${A#p*} w=${A/x/y}\nSHELL ["/bin/sh", "-c"]\n',
)
WORDS = (
    b"FROM ", b"RUN ", b"COPY ", b"ADD ", b"ENV ", b"ARG ", b"CMD ", b"ENTRYPOINT ", b"LABEL ", b"EXPOSE ", b"USER ",
    b"WORKDIR ", b"HEALTHCHECK ", b"SHELL ", b"VOLUME ", b"STOPSIGNAL ", b"ONBUILD ", b"--mount=", b"type=secret,",
    b"--chown=", b"--chmod=", b"--from=", b"<<EOF", b"\nEOF\n", b"<<-", b"${", b":-", b":+", b"\\\n", b"# escape=`\n", b"[\"", b"\"]",
)  # fmt: skip
LONGEST = 2048


def one(data: bytes) -> None:
    arguments, rest = fields(data, 2)
    given = {}
    for pair in arguments.decode(errors="replace").split("\0"):
        name, _, value = pair.partition("=")
        given[name] = value
    text = rest.decode(errors="surrogateescape")
    try:
        dockerfile = parse(text)
        plan = Plan(dockerfile, given)
        plan.check()
        plan.begin({"env": {"PATH": "/bin"}, "workdir": "/w"})
        for each in dockerfile.instructions:
            if each.keyword != "FROM":
                plan.take(each)
        config = plan.config(None)
    except InvalidRequestError as refused:
        assert refused.code == "DOCKERFILE_INVALID", refused.code
        lines = text.count("\n") + text.count("\r") + 2
        assert refused.details.get("line", 1) <= lines
        return
    json.dumps(config)
