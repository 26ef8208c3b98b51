"""A session's sandbox, as a user of PandaStack writes it."""

from pandastack import CommandFailed, Sandbox, SandboxTimeout

with Sandbox.create(template="agent", ttl_seconds=900) as sandbox:
    sandbox.filesystem.write("/work/app.py", "print(sum(range(10)))")
    result = sandbox.exec("cd /work && python3 app.py", timeout_seconds=30, check=True)
    assert result.stdout == "45\n", result
    assert sandbox.exec("node -e 'console.log(6 * 7)'").stdout == "42\n"
    try:
        sandbox.exec("sleep 60", timeout_seconds=2)
        raise AssertionError("it did not time out")
    except SandboxTimeout:
        pass
    try:
        sandbox.exec("exit 3", check=True)
        raise AssertionError("it did not fail")
    except CommandFailed as failure:
        code = failure.exit_code
    assert code == 3
    name = sandbox.id

assert name not in [each.id for each in Sandbox.list()]
print("session: done")
