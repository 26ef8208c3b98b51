"""An agent with a browser: it opens a page, reads it, fills in a form and looks at what came of it.

    python examples/browser_agent.py                                      a script stands in for the model
    python examples/browser_agent.py --provider anthropic --model MODEL   with ANTHROPIC_API_KEY
    python examples/browser_agent.py --provider openai --model MODEL      with OPENAI_API_KEY

The machine is made of the template ``browser``, where Chromium runs already. The page is served in the machine itself, so
nothing outside is needed. ``--picture FILE`` keeps the last screenshot.
"""

from __future__ import annotations

from pathlib import Path

from models import Step, arguments, work

from roost import Machine

TASK = (
    "At http://localhost:8000/ there is a guest book. Read it, sign it as Ada with the greeting that its page asks for, and look at "
    "it to see that your name is there."
)

PAGE = """\
<!doctype html><title>Guest book</title>
<style>body { font: 24px sans-serif; margin: 2em; background: #ffe } li { color: #063 }</style>
<h1>Guest book</h1><p>Please greet us with <b>good morning</b>.</p>
<ul><li>Grace: good morning</li></ul>
<form><input id=name> <input id=greeting> <button id=sign type=button>Sign</button></form>
<script>
document.querySelector("#sign").onclick = () => {
  const line = document.createElement("li"), value = id => document.querySelector(id).value
  line.textContent = value("#name") + ": " + value("#greeting")
  document.querySelector("ul").append(line)
}
</script>
"""

SCRIPT = [
    Step(
        "First the page.",
        [("open_page", {"url": "http://localhost:8000/"})],
        "greet us with good morning",
    ),
    Step(
        "It asks for a good morning.",
        [
            ("fill_in_page", {"selector": "#name", "text": "Ada"}),
            ("fill_in_page", {"selector": "#greeting", "text": "good morning"}),
            ("click_in_page", {"selector": "#sign"}),
            ("read_page", {}),
        ],
        "Ada: good morning",
    ),
    Step("And with my own eyes.", [("look_at_page", {})], "image/png"),
    Step("My name is in the guest book."),
]


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--template", default="browser")
    parser.add_argument("--picture", type=Path, help="where to keep the last screenshot")
    options = parser.parse_args()
    # The first of a kind boots once, for all that come after it.
    machine = Machine.create(options.template, ttl="1h", timeout=600)
    try:
        print(f"in machine {machine.id}")
        machine.files.write("/srv/guests/index.html", PAGE)
        machine.start("python3 -m http.server 8000", cwd="/srv/guests")
        machine.exec(
            "until curl -s -o /dev/null localhost:8000; do sleep 0.1; done", timeout=30, check=True
        )
        work(machine, TASK, SCRIPT, options, browser=True)
        signed = "Ada: good morning" in machine.browser.text()
        if options.picture:
            options.picture.write_bytes(machine.browser.screenshot())
        print("Ada is in the book." if signed else "Ada is not in the book.")
        raise SystemExit(0 if signed else 1)
    finally:
        if not options.keep:
            machine.destroy()


if __name__ == "__main__":
    main()
