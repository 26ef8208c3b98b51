"""What instructions mean."""

from __future__ import annotations

import time
from typing import Any

import pytest

from roost.errors import InvalidRequestError
from roost.templates import keys
from roost.templates.dockerfile import parse
from roost.templates.plan import Copy, MakeDirectory, Plan, Run, Step
from roost.templates.roosttoml import parse as beside


def steps(text: str, base: dict[str, Any] | None = None, **given: str) -> tuple[Plan, list[Step]]:
    plan = Plan(parse(text), given)
    plan.check()
    found = []
    for each in plan.dockerfile.instructions:
        if each.keyword == "FROM":
            plan.reference(each)
            plan.begin(base or {})
        elif (step := plan.take(each)) is not None:
            found.append(step)
    return plan, found


def runs(text: str, **given: str) -> list[Run]:
    return [s for s in steps(text, **given)[1] if isinstance(s, Run)]


def test_metadata_changes_no_files() -> None:
    plan, found = steps(
        'FROM base\nENV A=1 B=$A C="x y"\nENV OLD some value\nUSER app\nEXPOSE 80 90-92/tcp 53/udp\n'
        "LABEL a=b 'c d'=e\nSTOPSIGNAL 9\nVOLUME /x\n",
        {"env": {"A": "0"}, "ports": [22]},
    )
    assert found == []
    config = plan.config(None)
    # Of one instruction none sees another's value.
    assert config["env"] == {"A": "1", "B": "0", "C": "x y", "OLD": "some value"}
    assert (config["user"], config["ports"]) == ("app", [22, 80, 90, 91, 92])
    assert config["labels"] == {"a": "b", "c d": "e"}


def test_run_knows_env_args_user_and_place() -> None:
    (run,) = runs("FROM base\nARG V=1\nARG W\nARG N\nENV E=$V\nUSER u\nRUN echo $V\n", W="2")
    assert run.argv == ("/bin/sh", "-c", "echo $V")
    assert {k: run.env[k] for k in ("V", "W", "E")} == {"V": "1", "W": "2", "E": "1"}
    assert "N" not in run.env
    assert run.user == "u"


def test_path_is_there_to_be_added_to() -> None:
    plan, _ = steps("FROM base\nENV PATH=/x:$PATH\n")
    assert plan.config(None)["env"]["PATH"].startswith("/x:/usr/local/sbin:")


def test_args_before_from() -> None:
    text = "ARG V=stable\nFROM base:$V\nARG V\nARG U=x\nRUN a\n"
    assert Plan(parse(text), {}).check() == "base:stable"
    assert Plan(parse(text), {"V": "old"}).check() == "base:old"
    assert runs(text)[0].env["V"] == "stable"
    # One that is not declared again is not seen after FROM.
    assert "V" not in runs("ARG V=1\nFROM base\nRUN a\n")[0].env


def test_arguments_nobody_named() -> None:
    plan, _ = steps("FROM base\nARG A\n", A="1", B="2", http_proxy="x")
    assert plan.unused == ["B"]


def test_here_documents_run() -> None:
    plain, script, piped = runs(
        "FROM base\nRUN <<EOF\na\nb\nEOF\nRUN <<EOF\n#!/usr/bin/python3\nprint(1)\nEOF\nRUN cat <<EOF\nx\nEOF\n"
    )
    assert plain.argv == ("/bin/sh", "-c", "a\nb\n")
    assert script.script == "#!/usr/bin/python3\nprint(1)\n"
    assert piped.argv[-1] == "cat <<EOF\nx\nEOF\n"


def test_shell() -> None:
    plan, found = steps('FROM base\nSHELL ["/bin/bash", "-ec"]\nRUN a\nCMD b c\n')
    assert isinstance(found[0], Run)
    assert found[0].argv == ("/bin/bash", "-ec", "a")
    assert plan.config(None)["start"] == ["/bin/bash", "-ec", "b c"]


def test_secrets() -> None:
    (run,) = runs(
        "FROM base\nRUN --mount=type=secret,id=a --mount=type=secret,id=b,env=B --mount=type=secret,id=c,"
        "target=/root/.c,mode=0440,required=true --mount=type=cache,target=/x echo\n"
    )
    assert [(s.id, s.target, s.env, s.mode, s.required) for s in run.secrets] == [
        ("a", "/run/secrets/a", None, 0o400, False),
        ("b", None, "B", 0o400, False),
        ("c", "/root/.c", None, 0o440, True),
    ]


def test_copy() -> None:
    _, found = steps(
        "FROM base\nWORKDIR /srv\nWORKDIR app\nCOPY a b/ ./\nCOPY --chown=u:g --chmod=755 x y\n"
        'ADD ["a b", "/c d/"]\nCOPY <<EOF /etc/x\nv=$V\nEOF\nCOPY . /\n'
    )
    directory, deeper, one, two, three, four, five = found
    assert isinstance(directory, MakeDirectory)
    assert isinstance(deeper, MakeDirectory)
    assert deeper.path == "/srv/app"
    copies = [s for s in (one, two, three, four, five) if isinstance(s, Copy)]
    assert [c.target for c in copies] == ["/srv/app/", "/srv/app/y", "/c d/", "/etc/x", "/"]
    assert copies[0].sources == ("a", "b/")
    assert (copies[1].owner, copies[1].mode) == ("u:g", 0o755)
    assert copies[2].unpack
    assert copies[3].inline[0].content == "v=\n"


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("FROM base\nCOPY --from=x a /b\n", 2, "one stage"),
        ("FROM base\nADD https://x/y /z\n", 2, "nothing is fetched"),
        ("FROM base\nCOPY ../a /b\n", 2, "outside the context"),
        ("FROM base\nCOPY a b /c\n", 2, "ends with /"),
        ("FROM base\nCOPY a\n", 2, "where to"),
        ("FROM base\nCOPY --chmod=u+x a /b\n", 2, "octal"),
        ("FROM base\nENV A\n", 2, "NAME=VALUE"),
        ("FROM base\nENV 1A=2\n", 2, "no name"),
        ("FROM base\nENV A='x\n", 2, "not closed"),
        ("FROM base\nEXPOSE 0\n", 2, "65535"),
        ("FROM base\nRUN --mount=type=bind,target=/x a\n", 2, "type=secret"),
        ("FROM base\nRUN --mount=type=secret a\n", 2, "needs an id"),
        ("FROM base\nRUN --network=none a\n", 2, "--network"),
        ("FROM base\nSHELL bash\n", 2, "list"),
        ("FROM base\nHEALTHCHECK x\n", 2, "HEALTHCHECK"),
        ("FROM base\nHEALTHCHECK --interval=x CMD a\n", 2, "a time"),
        ("FROM base\nONBUILD RUN x\n", 2, "ONBUILD"),
        ("FROM $X\n", 1, "empty"),
        ("FROM scratch\n", 1, "scratch"),
        ("FROM --platform=linux/arm64 base\n", 1, "amd64"),
        ("FROM base x y\n", 1, "AS"),
        ('FROM bas"e\n', 1, "not closed"),
        ("FROM base\nENV A=\udcff\n", 2, "no UTF-8"),
        pytest.param(f"FROM base\nEXPOSE {'1' * 5000}\n", 2, "65535", id="a long port"),
        pytest.param(f"FROM base\nEXPOSE 1-{'1' * 5000}\n", 2, "65535", id="a long range"),
        pytest.param(
            f"FROM base\nHEALTHCHECK --retries={'1' * 5000} CMD a\n",
            2,
            "a number",
            id="many retries",
        ),
        ("FROM base\nWORKDIR ${X#y}\n", 2, "only"),
    ],
)
def test_what_is_wrong_is_found_before_anything_runs(text: str, line: int, says: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Plan(parse(text), {}).check()
    assert caught.value.details["line"] == line
    assert says in caught.value.message


def test_variables_of_the_base_are_not_wrong() -> None:
    text = "FROM base\nWORKDIR $HOME_OF\nEXPOSE $PORT\nUSER $U\nCOPY --chmod=$M a b\n"
    Plan(parse(text), {}).check()
    _, found = steps(text, {"env": {"HOME_OF": "/h", "PORT": "1", "U": "u", "M": "600"}})
    assert isinstance(found[0], MakeDirectory)
    assert found[0].path == "/h"
    with pytest.raises(InvalidRequestError):
        steps(text)


# --- what is started ---------------------------------------------------------------------------


def config(text: str, base: dict[str, Any] | None = None, toml: str = "") -> dict[str, Any]:
    return steps(text, base)[0].config(beside(toml) if toml else None)


def test_start() -> None:
    assert "start" not in config("FROM base\n")
    assert config("FROM base\nCMD a b\n")["start"] == "a b"
    assert config('FROM base\nCMD ["a", "b"]\n')["start"] == ["a", "b"]
    both = 'FROM base\nCMD ["x"]\nENTRYPOINT ["a", "b"]\n'
    assert config(both)["start"] == ["a", "b", "x"]
    assert config("FROM base\nCMD a\n", toml='start = "c"')["start"] == "c"


def test_what_an_image_from_elsewhere_starts_is_not_started() -> None:
    image = {"entrypoint": ["/e"], "cmd": ["c"]}
    assert "start" not in config("FROM base\n", image)
    assert config('FROM base\nCMD ["d"]\n', image)["start"] == ["/e", "d"]
    assert config('FROM base\nENTRYPOINT ["f"]\n', image)["start"] == ["f"]


def test_a_template_hands_its_start_on() -> None:
    parent = config(
        'FROM base\nCMD ["a"]\nHEALTHCHECK CMD ready\n',
        toml='size = {vcpu = 2.0}\nbake = ["gvisor"]',
    )
    child = config("FROM base\n", parent)
    assert (child["start"], child["ready"]["command"]) == (["a"], "ready")
    assert (child["size"], child["bake"]) == ({"vcpu": 2.0}, ["gvisor"])
    assert "ready" not in config("FROM base\nCMD other\n", parent)
    assert config("FROM base\n", parent, "size = {memory_mib = 512}")["size"] == {
        "vcpu": 2.0,
        "memory_mib": 512,
    }


def test_ready() -> None:
    found = config(
        'FROM base\nHEALTHCHECK --interval=5s --start-interval=1s --retries=2 CMD ["c", "-f"]\n'
    )["ready"]
    assert found == {"command": ["c", "-f"], "interval_s": 1.0, "timeout_s": 60.0}
    assert (
        config("FROM base\nHEALTHCHECK CMD x\n", toml="ready = {port = 80}")["ready"]["port"] == 80
    )
    assert "ready" not in config("FROM base\nHEALTHCHECK NONE\n", {"ready": {"port": 1}})


# --- keys ---------------------------------------------------------------------------------------


def chain(text: str, **given: str) -> list[str]:
    key = keys.of_base("sha256:b")
    found = []
    for step in steps(text, **given)[1]:
        key = keys.of_step(key, step, "c" if isinstance(step, Copy) else None)
        found.append(key)
    return found


def test_a_change_reruns_from_there() -> None:
    before = chain("FROM base\nRUN a\nRUN b\nRUN c\n")
    after = chain("FROM base\nRUN a\nRUN B\nRUN c\n")
    assert [x == y for x, y in zip(before, after, strict=True)] == [True, False, False]


def test_arguments_count_from_where_they_are_named() -> None:
    text = "FROM base\nRUN a\nARG V\nRUN b\n"
    one, two = chain(text, V="1"), chain(text, V="2")
    assert one[0] == two[0]
    assert one[1] != two[1]


def test_proxies_and_labels_do_not_count() -> None:
    assert chain("FROM base\nRUN a\n", http_proxy="x") == chain("FROM base\nLABEL a=b\nRUN a\n")


@pytest.mark.parametrize(
    "text",
    [
        "ARG A=" + "x" * 140_000 + "\nFROM base\n",
        "FROM base\n" + "".join(f"ARG A{n}={'x' * 10_000}\n" for n in range(20)),
        "FROM base\nENV A=" + "x" * 120_000 + "\nCOPY " + "<<F " * 100 + "/x/\n" + "$A\nF\n" * 100,
    ],
)
def test_what_variables_become_is_bounded(text: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Plan(parse(text), {}).check()
    assert caught.value.code == "DOCKERFILE_INVALID"


@pytest.mark.parametrize(
    "text",
    [
        "ARG " + " ".join(f"a{n}=b" for n in range(100_000)),
        "ENV " + "a=b " * 250_000,
        "EXPOSE " + "1-100 " * 170_000,
        "RUN " + "--mount=type=secret,id=a " * 40_000 + "true",
        *("\n".join("ARG " + " ".join(f"a{n}_{m}=" for m in range(900)) for n in range(9)),),
    ],
)
def test_a_large_text_takes_no_time(text: str) -> None:
    begun = time.process_time()
    with pytest.raises(InvalidRequestError, match="more than"):
        Plan(parse(f"FROM base\n{text}\n"), {}).check()
    assert time.process_time() - begun < 5


def test_arguments_of_one_instruction_see_each_other() -> None:
    (run,) = runs("FROM base\nENV c=env\nARG a=1 b=$a-$c c=arg d=$c\nRUN x\n")
    assert [run.env[name] for name in "abcd"] == ["1", "1-env", "env", "env"]


@pytest.mark.parametrize("part", ["a.", '"".', "''. ", '"\\"" .'])
def test_a_key_of_many_parts_takes_no_time(part: str) -> None:
    begun = time.process_time()
    with pytest.raises(InvalidRequestError, match="parts"):
        beside(part * (250_000 // len(part)) + "a = 1")
    assert time.process_time() - begun < 2
