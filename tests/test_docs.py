"""README and the pages in docs/: their Python runs, their commands exist, their links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from onecycle.commands import make_parser

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "results/choice/README.md",
]  # weights/README.md has a test of its own
SHELLS = ("", "bash", "console", "sh", "shell")
PROGRAMS = ("make", "onecycle", "torchrun", "python", ".venv/bin/python")
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
each_page = pytest.mark.parametrize("page", PAGES, ids=NAMES)


def by_hand(page):
    """The text of a page without what scripts/publish.py puts into it."""
    made = r"<!-- (\w+): made by .*?<!-- end of \1 -->"
    return re.sub(made, "", page.read_text("utf-8"), flags=re.DOTALL)


def commands(page):
    """What a page tells to type: the lines of its blocks, and each ``make`` in its sentences."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", by_hand(page), re.MULTILINE | re.DOTALL)
    text = "".join(content for language, content in blocks if language in SHELLS)
    lines = [line.removeprefix("$ ") for line in text.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`((?:\w+=\S+ )?make [^`]+)`", by_hand(page))
    lines = [re.sub(r"^(\w+=\S+ )+", "", line) for line in lines]  # settings before a command
    return [line for line in lines if line.partition(" ")[0] in PROGRAMS]


COMMANDS = [(name, command) for page, name in zip(PAGES, NAMES) for command in commands(page)]


def test_the_readme_begins_with_two_commands():
    assert commands(ROOT / "README.md")[:2] == ["make demo", "make test"]


@pytest.mark.parametrize("page, command", COMMANDS)
def test_commands_exist(page, command):
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        assert words[1] in targets
    elif "onecycle" in words:
        start = words.index("onecycle") + 1
        make_parser().parse_args(words[start:])
    else:
        assert (ROOT / next(word for word in words if word.endswith(".py"))).is_file()


@each_page
def test_python_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # an empty folder
    block = r"^(<!-- not run: .+ -->\n)?```python\n(.*?)^```"
    names = {"__name__": "page"}
    for left_out, code in re.findall(block, by_hand(page), re.MULTILINE | re.DOTALL):
        compiled = compile(code, str(page), "exec")
        if not left_out:
            exec(compiled, names)


def anchors(page):
    titles = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@each_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_every_published_picture_is_shown():
    shown = set(re.findall(r"\(images/(\S+?)\)", (ROOT / "README.md").read_text("utf-8")))
    assert shown == {path.name for path in (ROOT / "images").iterdir()}
