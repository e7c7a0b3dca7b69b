#!/usr/bin/env python3
"""Write docs/api.md from the signatures and docstrings of the rooms: write_api.py.

The rooms are those that pyproject.toml packs. They are read, not imported.
"""

from __future__ import annotations

import ast
import re
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "api.md"
SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Source")
LISTS = ("Args", "Attributes", "Raises")
LONGEST_VALUE = 90
"""Characters of a constant's value that are shown; a longer one is not."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Docstring:
    """A Google-style docstring in its parts."""

    text: str = ""
    """What comes before the first section."""
    sections: dict[str, str] = field(default_factory=dict)
    """By name, in their order, without the indentation."""

    def items(self, section: str) -> dict[str, str]:
        """The entries ``name: text`` of a section."""
        entries: dict[str, str] = {}
        name = ""
        for line in self.sections.get(section, "").splitlines():
            if found := re.match(r"\*{0,2}(\w+): (.*)", line):
                name = found[1]
                entries[name] = found[2]
            elif name:
                entries[name] += "\n" + line.strip()
        return entries


def parse(docstring: str | None) -> Docstring:
    """The parts of a docstring, whose indentation is taken away already."""
    parts = re.split(r"^(\w+):\n(?=    )", docstring or "", flags=re.MULTILINE)
    bodies = [re.sub(r"^    ", "", body, flags=re.MULTILINE).strip() for body in parts[2::2]]
    return Docstring(parts[0].strip(), dict(zip(parts[1::2], bodies)))


def rooms(root: Path = ROOT) -> dict[str, Path]:
    """The modules of the library by their path, the plain ones first."""
    packed = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    files = [root / f"{name}.py" for name in sorted(packed["py-modules"])]
    for package in sorted(packed["packages"]):
        files += sorted((root / package).glob("*.py"))
    return {file.relative_to(root).as_posix(): file for file in files if file.name[0] != "_"}


def exported(room: str, root: Path = ROOT) -> set[str] | None:
    """What a package's ``__init__`` exports; None for a plain module, all of which is public."""
    if "/" not in room:
        return None
    tree = ast.parse((root / room).with_name("__init__.py").read_text("utf-8"))
    (names,) = (n.value for n in tree.body if isinstance(n, ast.Assign))
    return set(ast.literal_eval(names))


def name_of(node: ast.stmt) -> str:
    """Of a function, a class or a constant."""
    if isinstance(node, Function | ast.ClassDef):
        return node.name
    return ast.unparse(node.target if isinstance(node, ast.AnnAssign) else node.targets[0])


def documented(tree: ast.Module | ast.ClassDef) -> Iterator[tuple[ast.stmt, Docstring]]:
    """The public functions, classes and constants in a body, with their docstrings."""
    for node, following in zip(tree.body, [*tree.body[1:], None]):
        if isinstance(node, Function | ast.ClassDef):
            if node.name[0] != "_":
                yield node, parse(ast.get_docstring(node))
            continue
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
        elif isinstance(node, ast.AnnAssign):
            target = node.target
        else:
            continue
        if isinstance(target, ast.Name) and target.id[0] != "_":
            text = getattr(getattr(following, "value", None), "value", None)
            is_text = isinstance(following, ast.Expr) and isinstance(text, str)
            yield node, Docstring(" ".join(text.split()) if is_text else "")


def parameters(node: ast.stmt) -> list[str]:
    """What a function takes, or a class when it is made, without ``self`` and ``cls``."""
    if isinstance(node, ast.ClassDef):
        if is_dataclass(node):
            fields = [field for field in node.body if isinstance(field, ast.AnnAssign)]
            return [f.target.id for f in fields if "init=False" not in ast.unparse(f)]
        node = next((n for n in node.body if getattr(n, "name", "") == "__init__"), None)
        if node is None:
            return []
    given = node.args
    named = [*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg]
    return [arg.arg for arg in named if arg is not None and arg.arg not in ("self", "cls")]


def signature(node: ast.stmt) -> str:
    """How a name is called or what it is, as Python writes it."""
    if isinstance(node, Function):
        arguments = re.sub(r"^(self|cls)(, |$)", "", ast.unparse(node.args))
        if is_property(node):
            return node.name + (f": {ast.unparse(node.returns)}" if node.returns else "")
        return f"{node.name}({arguments})" + (
            f" -> {ast.unparse(node.returns)}" if node.returns else ""
        )
    if isinstance(node, ast.ClassDef):
        init = next((n for n in node.body if getattr(n, "name", "") == "__init__"), None)
        if init is not None:
            return f"{node.name}({re.sub(r'^self(, |$)', '', ast.unparse(init.args))})"
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return node.name if is_dataclass(node) or not bases else f"{node.name}({bases})"
    name = name_of(node)
    kind = f": {ast.unparse(node.annotation)}" if isinstance(node, ast.AnnAssign) else ""
    value = "" if node.value is None else f" = {ast.unparse(node.value)}"
    return name + kind + (value if len(value) <= LONGEST_VALUE else " = ...")


def is_property(node: ast.stmt) -> bool:
    return any("property" in ast.unparse(mark) for mark in getattr(node, "decorator_list", []))


def is_dataclass(node: ast.stmt) -> bool:
    return any("dataclass" in ast.unparse(mark) for mark in getattr(node, "decorator_list", []))


def markdown(text: str) -> str:
    """A docstring's prose: what is code there is code here, the rest is plain."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    pieces = re.split(r"(``.+?``|`[^`]+`)", text, flags=re.DOTALL)
    return "".join(
        "`" + " ".join(piece.strip("`").split()) + "`" if piece.startswith("`")
        else piece.replace("<", "&lt;").replace("*", r"\*")
        for piece in pieces
    )  # fmt: skip


def render_docstring(docstring: Docstring) -> Iterator[str]:
    if docstring.text:
        yield markdown(docstring.text) + "\n"
    for name in docstring.sections:
        entries = docstring.items(name) if name in LISTS else {}
        if entries:
            lines = [f"- `{key}`: {markdown(text)}" for key, text in entries.items()]
            yield f"**{name}**\n\n" + "\n".join(line.replace("\n", "\n  ") for line in lines) + "\n"
        else:
            yield f"**{name}:** {markdown(docstring.sections[name])}\n"


def render_name(node: ast.stmt, docstring: Docstring, owner: str = "") -> Iterator[str]:
    name = getattr(node, "name", "")
    yield f"{'####' if owner else '###'} {owner}{name}\n"
    call = textwrap.fill(
        signature(node),
        88,
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    yield f"```python\n{call}\n```\n"
    yield from render_docstring(docstring)
    if isinstance(node, ast.ClassDef):
        inside = list(documented(node))
        yield from render_constants(inside)
        for child, text in inside:
            if isinstance(child, Function):
                yield from render_name(child, text, f"{owner}{name}.")


def render_constants(inside: list[tuple[ast.stmt, Docstring]]) -> Iterator[str]:
    lines = [
        f"- `{signature(node)}`" + (f": {markdown(docstring.text)}" if docstring.text else "")
        for node, docstring in inside
        if not isinstance(node, Function | ast.ClassDef)
    ]
    if lines:
        yield "\n".join(lines) + "\n"


def render(root: Path = ROOT) -> str:
    """The whole page."""
    files = rooms(root)
    trees = {room: ast.parse(file.read_text("utf-8")) for room, file in files.items()}
    public = {}
    for room, tree in trees.items():
        only = exported(room, root)
        found = [(n, text) for n, text in documented(tree) if only is None or name_of(n) in only]
        if found:
            public[room] = found
    page = [
        "# The library, name by name\n",
        "Made from the docstrings by `make docs`. What is not here may change without notice.\n",
    ]
    contents = []
    for room, inside in public.items():
        names = [n.name for n, _ in inside if isinstance(n, Function | ast.ClassDef)]
        anchor = re.sub(r"[^\w-]", "", room)
        contents.append(f"- [`{room}`](#{anchor}): " + ", ".join(f"`{name}`" for name in names))
    page.append("\n".join(contents) + "\n")
    for room, inside in public.items():
        page += [f"## {room}\n", f"[source](../{room})\n"]
        page += render_docstring(parse(ast.get_docstring(trees[room])))
        page += render_constants(inside)
        for node, docstring in inside:
            if isinstance(node, Function | ast.ClassDef):
                page += render_name(node, docstring)
    return "\n".join(page)


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(render(), encoding="utf-8")
