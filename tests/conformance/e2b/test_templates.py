"""Templates made of steps, their names and tags, as both Python clients ask for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.foreign import Raised

from .conftest import Sdk
from .test_sandboxes import sandbox


def test_a_template_is_built_named_and_used(sdk: Sdk, tmp_path: Path) -> None:
    name = f"conf-{'async' if sdk.awaited else 'sync'}"
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "main.py").write_text("print('made by a template')\n")
    (tmp_path / "note.txt").write_text("note\n")
    sdk.run(
        """
said = []
made = (
    e2b.Template(file_context_path=HERE)
    .from_base_image()
    .run_cmd("echo from-root > /etc/made", user="root")
    .copy("app", "/srv/app", user="root", mode=0o755)
    .copy("note.txt", "/home/user/")
    .set_envs({"MADE": "by a template", "AGAIN": "$MADE!"})
    .set_workdir("/srv")
    .run_cmd("whoami > /home/user/who && pwd >> /home/user/who && echo $AGAIN >> /home/user/who")
    .set_start_cmd("python3 -m http.server 8200 --directory /srv/app", e2b.wait_for_port(8200))
)
built = ~Template.build(
    made, NAME, tags=["v1", "stable"], cpu_count=1, memory_mb=512, on_build_logs=lambda entry: said.append(entry.message)
)
""",
        timeout=400,
        HERE=str(tmp_path),
        NAME=name,
    )
    assert sdk.value("(built.template_id, built.name)") == [name, name]
    said = sdk.value("said")
    assert any("whoami" in each for each in said), said
    with sandbox(sdk, "box", timeout=300, template=f"{name}:v1"):
        run = "(~box.commands.run(C)).stdout"
        assert sdk.value("~box.files.read('/home/user/who')") == "user\n/srv\nby a template!\n"
        assert sdk.value("~box.files.read('/etc/made')") == "from-root\n"
        assert sdk.value("~box.files.read('/home/user/note.txt')") == "note\n"
        assert (
            sdk.value(run, C="stat -c %U:%a /srv/app/main.py; echo $MADE")
            == "root:755\nby a template\n"
        )
        assert "made by a template" in sdk.value(run, C="curl -s localhost:8200/main.py")
        assert sdk.value("(~box.get_info()).memory_mb") == 512

    assert sdk.value("~Template.exists(NAME)", NAME=name) is True
    assert sdk.value("~Template.exists('no-such-name')") is False
    assert sdk.value("(~Template.assign_tags(NAME + ':v1', ['new', 'newer'])).tags", NAME=name) == [
        "new",
        "newer",
    ]
    tags = sdk.value("sorted(each.tag for each in ~Template.get_tags(NAME))", NAME=name)
    assert {"v1", "stable", "new", "newer"} <= set(tags)
    sdk.run("~Template.remove_tags(NAME, ['new', 'newer'])", NAME=name)
    tags = sdk.value("[each.tag for each in ~Template.get_tags(NAME)]", NAME=name)
    assert not {"new", "newer"} & set(tags)

    # The same again is all there already; what begins from it goes on from it.
    sdk.run(
        """
again = e2b.Template().from_template(NAME + ":stable").run_cmd("cp /home/user/who /home/user/who2")
under_way = ~Template.build_in_background(again, NAME + "-child")
for _ in range(600):
    status = ~Template.get_build_status(under_way)
    if status.status.value in ("ready", "error"):
        break
    time.sleep(0.2)
""",
        timeout=300,
        NAME=name,
    )
    assert sdk.value("status.status.value") == "ready", sdk.value("status.reason")
    with sandbox(sdk, "child", timeout=300, template=f"{name}-child"):
        assert sdk.value("~child.files.exists('/home/user/who2')") is True
    sdk.records(
        "Template.build", "Template.build_in_background", "Template.get_build_status", "Template.exists",
        "Template.assign_tags", "Template.get_tags", "Template.remove_tags",
        "TemplateBase: copy, run_cmd, set_envs, set_workdir, set_user, set_start_cmd, from_base_image, from_template",
    )  # fmt: skip


def test_a_build_that_fails_says_why(sdk: Sdk) -> None:
    with pytest.raises(Raised) as found:
        sdk.run(
            "~Template.build(e2b.Template().from_base_image().run_cmd('echo oh >&2; exit 3'), 'conf-broken')",
            timeout=300,
        )
    assert "BuildException" in found.value.kinds and "3" in found.value.text
    with pytest.raises(Raised) as found:
        sdk.run("~Template.build(e2b.Template().from_base_image(), 'Not A Name')")
    assert "BuildException" in found.value.kinds and found.value.text.startswith("400")
    sdk.records("errors: BuildException")
