"""The notebooks' first cell in a folder with nothing but the notebook; Colab, Drive and GitHub are simulated."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import quote

import nbformat
import pytest

from conftest import ROOT

pytestmark = pytest.mark.skipif(not shutil.which("git") or not shutil.which("curl"), reason="needs git and curl")
CELL, SAME = (
    cell.source
    for notebook in ("A6.ipynb", "beyond.ipynb")
    for cell in nbformat.read(ROOT / notebook, as_version=4).cells
    if "colab" in cell.metadata.get("tags", [])
)
HOME = "woncoh1/era1"
HOLDS = {  # branch and folder of the repositories that hold the files; the first is the cell's constant
    HOME: ("main", "S6/P2"),
    "someone/fork": ("fix/colab", "week 6/A6 copy"),
    "someone/else": ("fix(colab)", "A6"),
    "someone/A6": ("main", "."),
}
DRIVE = "fileId=1ZAqQEIxR08eODSPEHvKPwbZoioVdV8L9"
RUN = """
import importlib.util, os, sys
from IPython.core.interactiveshell import InteractiveShell

shell, (cell, times, missing) = InteractiveShell.instance(colors="nocolor"), sys.argv[1:]
sys.modules |= {name: None for name in missing.split()}
success = all(shell.run_cell(cell, store_history=True).success for _ in range(int(times)))
print(os.path.dirname(os.path.abspath(importlib.util.find_spec("utils").origin)) if success else "stopped")
"""


def copy_files(folder: Path) -> None:
    """The files beside the notebooks, as they are now, with or without git."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (*ROOT.glob("*.py"), ROOT / "requirements.txt"):
        shutil.copy(path, folder)


def instead(url: str) -> dict[str, str]:
    """The environment in which git takes `url` for https://github.com."""
    return dict(GIT_CONFIG_COUNT="1", GIT_CONFIG_KEY_0=f"url.{url}.insteadOf", GIT_CONFIG_VALUE_0="https://github.com")


NOWHERE = instead("http://127.0.0.1:1")


def opened(repository: str, branch: str, folder: str) -> str:
    """What Colab calls the `path` of a notebook opened from GitHub: its address there, percent-encoded once more."""
    page = f"https://github.com/{repository}/blob/{quote(branch, '')}/{quote(folder)}/A6.ipynb".replace("/./", "/")
    return "fileId=" + quote(page, "")


@pytest.fixture(scope="module")
def github(tmp_path_factory):
    """The environment in which git finds the repositories."""
    folder = tmp_path_factory.mktemp("github")
    for repository, (branch, place) in HOLDS.items():
        copy_files(folder / repository / place)
        git = ["git", "-C", folder / repository, "-c", "user.name=test", "-c", "user.email=test@example.org"]
        for arguments in (["init", "-b", branch], ["add", "-A"], ["commit", "-m", "all"]):
            subprocess.run([*git, *arguments], check=True, capture_output=True)
    return instead(folder.as_uri())


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """A function that makes Colab's server tell a notebook's `path` and returns the environment there; None: laptop."""
    answers = tmp_path_factory.mktemp("answers")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=answers))
    Thread(target=server.serve_forever, daemon=True).start()
    (answers / "api").mkdir()

    def tell(path: str | None) -> dict[str, str]:
        (answers / "api/sessions").write_text(json.dumps([dict(name="A6.ipynb", path=path)]), encoding="utf-8")
        there = dict(COLAB_JUPYTER_IP="127.0.0.1", KMP_TARGET_PORT=str(server.server_port), no_proxy="127.0.0.1")
        return there if path else {}

    return tell


def run(folder: Path, environment: dict[str, str], times: int = 1, missing: str = "") -> list[str]:
    """What the cell shows when a new process runs it in `folder`; last, where modules then come from, or "stopped"."""
    usual = {name: value for name, value in os.environ.items() if name not in ("COLAB_JUPYTER_IP", "KMP_TARGET_PORT")}
    environment = usual | dict(IPYTHONDIR=str(folder / "ipython"), PYTHONPATH="") | environment
    command = [sys.executable, "-c", RUN, CELL, str(times), missing]
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, encoding="utf-8")
    return subprocess.run(command, cwd=folder, env=environment, check=True, **streams).stdout.splitlines()


OPENED = [(opened(name, *place), name) for name, place in HOLDS.items()]


@pytest.mark.parametrize("path, repository", [*OPENED, (DRIVE, HOME), (None, HOME)])
def test_the_files_come_from_where_the_notebook_was_opened(path, repository, colab, github, tmp_path):
    """Where Colab tells no address, from the constant's; a second run and a restart fetch nothing."""
    told, folder = run(tmp_path, colab(path) | github)
    assert Path(folder) == (tmp_path / "a6" / HOLDS[repository][1]).resolve()
    assert folder in told and ("mount Drive" in told) == bool(path)
    assert f"url = https://github.com/{repository}\n" in (tmp_path / "a6/.git/config").read_text(encoding="utf-8")
    assert run(tmp_path, colab(path) | NOWHERE, times=2) == [told, folder]


STOPS = [
    (None, dict(PATH="/nowhere"), "FileNotFoundError: [Errno 2] No such file or directory: 'curl'"),
    (None, NOWHERE, "'main', 'https://github.com/woncoh1/era1', 'a6']' returned non-zero exit status"),
    (opened("someone/fork", "fix(colab)", "."), {}, "'fix(colab)', 'https://github.com/someone/fork', 'a6']' returned"),
]


@pytest.mark.parametrize("path, environment, reason", STOPS)
def test_what_cannot_be_fetched_is_said_in_one_line(path, environment, reason, colab, github, tmp_path):
    """No git, no network, no such branch."""
    *_, line, end = run(tmp_path, colab(path) | github | environment)
    assert reason in line and end == "stopped"


@pytest.mark.parametrize("notebook", ["project/A6.ipynb", "link.ipynb"])
def test_papermill_finds_the_files_beside_the_notebook(notebook, tmp_path):
    """Run from another folder; by its path, or by a symbolic link."""
    copy_files(tmp_path / "project")
    cell = nbformat.v4.new_code_cell(f"{CELL}\nimport utils; print(utils.__file__)")
    kernel = dict(kernelspec=dict(name="python3", display_name="Python 3"))
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), tmp_path / "project" / "A6.ipynb")
    (tmp_path / "link.ipynb").symlink_to(tmp_path / "project" / "A6.ipynb")
    command = [sys.executable, "-m", "papermill", notebook, "out.ipynb"]
    subprocess.run(command, cwd=tmp_path, check=True, env=os.environ | NOWHERE)
    outputs = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[0].outputs
    assert str(tmp_path / "project" / "utils.py") in "".join(output.text for output in outputs)


SET_UP = [
    (DRIVE, "2.5.1+cu124", "", "installed: 2.5.1+cu124. To get it, choose Runtime > Change runtime type"),
    (None, "2.5.1+cu124", "", "installed: 2.5.1+cu124. To get it, run pip install -r"),
    (None, "10.0", "torchsummary anywidget nbval", "network and run this again. ERROR: no torchsummary anywidget"),
    (DRIVE, "10.0", "nbval ipykernel", ""),
]


@pytest.mark.parametrize("path, torch, missing, reason", SET_UP)
def test_files_beside_the_notebook_say_only_what_they_lack(path, torch, missing, reason, colab, tmp_path):
    """In a clone, and in Colab after `%cd` on a mounted Drive; nothing can be fetched. PyTorch is stubbed, and pip,
    which fails with what it is asked for; a newer ipykernel would break Colab's session."""
    copy_files(folder := tmp_path / "MyDrive/Colab Notebooks/A6")
    stub = "import sys\nsys.exit(f'WARNING: retry\\nERROR: no ' + ' '.join(sys.argv[3:]))\n"
    (folder / "pip.py").write_text(stub, encoding="utf-8")
    (folder / "torch.dist-info").mkdir()
    (folder / "torch.dist-info/METADATA").write_text(f"Name: torch\nVersion: {torch}\n", encoding="utf-8")
    *said, end = run(folder, colab(path) | NOWHERE | dict(PYTHONPATH=str(folder)), times=2, missing=missing)
    assert len(said) == bool(reason) and reason in "".join(said)
    assert end == ("stopped" if reason else str(folder.resolve()))


def test_an_old_python_is_named(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    with pytest.raises(RuntimeError, match="^Python 3.10 or newer is needed"):
        runpy.run_path(str(ROOT / "set_up.py"))


@pytest.mark.parametrize("page", ["A6.ipynb", "beyond.ipynb", "README.md"])
def test_the_badge_opens_what_the_constant_names(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    (target,) = re.findall(r"\[!\[Open in Colab\]\([^)]*\)\]\(https://colab.research.google.com/([^)]*)\)", text)
    (home,) = re.findall(r'^page = "https://([^"]*)"', CELL, re.MULTILINE)
    assert CELL == SAME and target.replace("beyond", "A6") == home.replace("github.com", "github")
