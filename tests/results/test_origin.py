import re
import shutil
import subprocess
from datetime import datetime

import pytest

import onecycle
from onecycle.results import origin


@pytest.fixture(autouse=True)
def asked_anew():
    origin.code_version.cache_clear()
    yield
    origin.code_version.cache_clear()


@pytest.fixture
def clone(tmp_path, monkeypatch):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").write_text("a = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "one")
    monkeypatch.setattr(origin, "ROOT", tmp_path)
    return tmp_path


def git(folder, *words):
    subprocess.run(["git", "-C", str(folder), *words], check=True)


def test_a_clean_clone_gives_its_commit_whatever_repository_git_is_told_of(clone, monkeypatch):
    (clone / "notes.txt").write_text("no part of the code")
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert re.fullmatch("[0-9a-f]{12}", origin.code_version())


def test_changes_are_said(clone):
    (clone / "code.py").write_text("a = 2\n")
    assert re.fullmatch(r"[0-9a-f]{12}\+changes", origin.code_version())


@pytest.mark.parametrize("why", ["no clone", "empty", "no git"])
def test_without_a_commit_it_is_the_version(tmp_path, monkeypatch, why):
    monkeypatch.setattr(origin, "ROOT", tmp_path)
    if why != "no clone":
        (tmp_path / ".git").mkdir()
    if why == "no git":
        monkeypatch.setenv("PATH", str(tmp_path))
    assert origin.code_version() == onecycle.__version__


def test_the_date_has_a_zone():
    assert datetime.fromisoformat(origin.begin()["date"]).tzinfo is not None


def test_a_name_is_one_line_of_letters_that_every_file_can_hold():
    assert origin.one_line("a\n b\t\udcff 猫 ") == r"a b \udcff 猫"
