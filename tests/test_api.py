import ast
import builtins
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load_script():
    spec = importlib.util.spec_from_file_location("write_api", ROOT / "scripts" / "write_api.py")
    module = sys.modules["write_api"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


write_api = load_script()
ROOMS = write_api.rooms()
ERRORS = {name for name in dir(builtins) if name.endswith(("Error", "Interrupt"))} | {
    node.name
    for node in ast.parse((ROOT / "errors.py").read_text("utf-8")).body
    if isinstance(node, ast.ClassDef)
}


def names(tree, owner=""):
    """All public functions and classes with their docstrings, methods too."""
    for node, docstring in write_api.documented(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield f"{owner}{node.name}", node, docstring
        if isinstance(node, ast.ClassDef):
            yield from names(node, f"{owner}{node.name}.")


def public(room):
    return list(names(ast.parse(ROOMS[room].read_text("utf-8"))))


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_says_in_one_line_what_it_is(room):
    for name, _, docstring in public(room):
        summary = docstring.text.splitlines()[:2]
        assert summary and summary[0].endswith((".", ":")), f"{room}: {name} lacks a summary line"
        assert summary[1:] in ([], [""]), f"{room}: {name}'s summary goes on in a second line"


@pytest.mark.parametrize("room", ROOMS)
def test_args_name_every_parameter_in_order_and_no_other(room):
    for name, node, docstring in public(room):
        if "Args" in docstring.sections:
            taken = write_api.parameters(node)
            assert list(docstring.items("Args")) == taken, f"{room}: Args of {name}"


@pytest.mark.parametrize("room", ROOMS)
def test_sections_are_known_filled_and_in_one_order(room):
    for name, node, docstring in public(room):
        found = list(docstring.sections)
        assert found == sorted(found, key=write_api.SECTIONS.index), f"{room}: sections of {name}"
        assert all(docstring.sections.values()), f"{room}: {name} has an empty section"
        text = ast.get_docstring(node)
        assert text.count("\n    Args") == 0, f"{room}: {name} indents a section"


@pytest.mark.parametrize("room", ROOMS)
def test_raises_names_errors_that_exist_with_their_condition(room):
    for name, _, docstring in public(room):
        if "Raises" in docstring.sections:
            raised = docstring.items("Raises")
            assert raised and set(raised) <= ERRORS, f"{room}: Raises of {name}"
            assert all(raised.values()), f"{room}: Raises of {name} lacks a condition"


def test_page_is_made_from_the_docstrings_that_are_there():
    written = write_api.PAGE.read_text("utf-8") if write_api.PAGE.exists() else ""
    assert written == write_api.render(), "docs/api.md is behind the docstrings: run make docs"


@pytest.fixture
def small_library(tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        '[tool.setuptools]\npackages = []\npy-modules = ["shapes"]\n', "utf-8"
    )
    (tmp_path / "shapes.py").write_text(
        '''"""Shapes."""

SIDES = 4
"""Of a square, see :class:`Square`."""


class Square:
    """A square.

    Args:
        side: its length, above 0
            and in metres.
    """

    def __init__(self, side: float) -> None:
        self._side = side

    @property
    def area(self) -> float:
        """Square metres, <10."""
        return self._side**2

    def _hidden(self):
        """Nobody's business."""


def grow(square: Square, *, by: float = 2.0) -> Square:
    """A larger one of ``by`` times the size.

    Returns:
        A new square.

    Raises:
        ValueError: ``by`` is 0.
    """
''',
        "utf-8",
    )
    return tmp_path


def test_page_shows_signatures_values_and_sections(small_library):
    page = write_api.render(small_library)
    for line in (
        "- [`shapes.py`](#shapespy): `Square`, `grow`",
        "- `SIDES = 4`: Of a square, see `Square`.",
        "Square(side: float)",
        "- `side`: its length, above 0",
        "area: float",
        "Square metres, &lt;10.",
        "grow(square: Square, *, by: float=2.0) -> Square",
        "A larger one of `by` times the size.",
        "**Returns:** A new square.",
        "- `ValueError`: `by` is 0.",
    ):
        assert line in page.splitlines(), line
    assert "hidden" not in page and "business" not in page
