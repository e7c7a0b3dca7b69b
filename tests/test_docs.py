"""README and the pages in docs/: their Python runs, their commands exist, their links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from onecycle.commands import make_parser

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
each_page = pytest.mark.parametrize("page", PAGES, ids=NAMES)


def by_hand(page):
    """The text of a page without what scripts/publish.py puts into it."""
    made = r"<!-- (\w+): made by .*?<!-- end of \1 -->"
    return re.sub(made, "", page.read_text("utf-8"), flags=re.DOTALL)


def commands(page):
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", by_hand(page), re.MULTILINE | re.DOTALL)
    text = "".join(content for language, content in blocks if not language)
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith(("make ", "onecycle ", "torchrun "))]


COMMANDS = [(name, command) for page, name in zip(PAGES, NAMES) for command in commands(page)]


def test_the_readme_begins_with_two_commands():
    assert commands(ROOT / "README.md")[:2] == ["make demo", "make test"]


@pytest.mark.parametrize("page, command", COMMANDS)
def test_commands_exist(page, command):
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        assert words[1] in targets
    else:
        start = words.index("onecycle") + 1
        make_parser().parse_args(words[start:])


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
