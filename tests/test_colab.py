"""The notebooks' first cell in a folder with nothing but the notebook; Colab, Drive and GitHub are simulated."""

import json
import os
import re
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
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from conftest import ROOT

pytestmark = pytest.mark.skipif(not shutil.which("git") or not shutil.which("curl"), reason="needs git and curl")
HOLDS = {  # branch and folder of the repositories that hold the files; the first is the cell's constant
    "woncoh1/era1": ("main", "S6/P2"),
    "someone/fork": ("fix/colab", "week 6/A6 copy"),
    "someone/A6": ("main", "."),
}
NOTHING = {"someone/nothing": ("main", ".")}
DRIVE = "fileId=1ZAqQEIxR08eODSPEHvKPwbZoioVdV8L9"
RUN = """
import importlib.util, os, sys
from IPython.core.interactiveshell import InteractiveShell

shell, (cell, times, missing) = InteractiveShell.instance(colors="nocolor"), sys.argv[1:]
sys.modules |= {name: None for name in missing.split()}
success = all(shell.run_cell(cell, store_history=True).success for _ in range(int(times)))
print(os.path.dirname(os.path.abspath(importlib.util.find_spec("utils").origin)) if success else "stopped")
"""


def colab_cell() -> str:
    """The source of the cell, which is the same in both notebooks."""
    notebooks = [nbformat.read(ROOT / name, as_version=4) for name in ("A6.ipynb", "beyond.ipynb")]
    cells = [cell for notebook in notebooks for cell in notebook.cells if "colab" in cell.metadata.get("tags", [])]
    assert len(cells) == 2 and cells[0].source == cells[1].source
    return cells[0].source


def opened(repository: str, branch: str, folder: str) -> str:
    """What Colab calls the `path` of a notebook opened from GitHub: its address there, percent-encoded once more."""
    page = f"https://github.com/{repository}/blob/{quote(branch, '')}/{quote(folder)}/A6.ipynb".replace("/./", "/")
    return "fileId=" + quote(page, "")


def copy_files(folder: Path) -> None:
    """The files beside the notebooks, as they are now, with or without git."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in ROOT.iterdir():
        if path.suffix in (".py", ".txt", ".ipynb"):
            shutil.copyfile(path, folder / path.name)


def instead(url: str) -> dict[str, str]:
    """The environment in which git takes `url` for https://github.com."""
    return dict(GIT_CONFIG_COUNT="1", GIT_CONFIG_KEY_0=f"url.{url}.insteadOf", GIT_CONFIG_VALUE_0="https://github.com")


@pytest.fixture(scope="module")
def github(tmp_path_factory):
    """The environment in which git finds the repositories."""
    folder = tmp_path_factory.mktemp("github")
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for repository, (branch, place) in (HOLDS | NOTHING).items():
        copy_files(folder / repository / place)
        if repository in NOTHING:
            (folder / repository / "set_up.py").unlink()
        for arguments in (["init"], ["checkout", "-b", branch], ["add", "-A"], [*identity, "commit", "-m", "all"]):
            subprocess.run(["git", *arguments], cwd=folder / repository, check=True, capture_output=True)
    return instead(folder.as_uri())


@pytest.fixture
def colab(tmp_path_factory):
    """A function that makes Colab's server tell a notebook's `path`; it returns the environment there."""
    answers = tmp_path_factory.mktemp("answers")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=answers))
    Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01), daemon=True).start()
    (answers / "api").mkdir()

    def tell(path: str) -> dict[str, str]:
        sessions = [{"name": "A6.ipynb", "notebook": {"name": "A6.ipynb", "path": path}, "path": path}]
        (answers / "api/sessions").write_text(json.dumps(sessions), encoding="utf-8")
        return dict(COLAB_JUPYTER_IP="127.0.0.1", KMP_TARGET_PORT=str(server.server_port), no_proxy="127.0.0.1")

    yield tell
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(tmp_path, tmp_path_factory):
    """A function that runs the cell in a new process; it returns the lines that are shown and, as the last, the folder
    from which modules are imported afterwards, or "stopped"."""
    usual = {name: value for name, value in os.environ.items() if name not in ("COLAB_JUPYTER_IP", "KMP_TARGET_PORT")}
    usual |= dict(IPYTHONDIR=str(tmp_path_factory.mktemp("ipython")), PYTHONPATH="")

    def run(environment: dict[str, str], folder=tmp_path, times=1, missing="") -> list[str]:
        command = [sys.executable, "-c", RUN, colab_cell(), str(times), missing]
        keywords = dict(cwd=folder, env=usual | environment, start_new_session=True, encoding="utf-8")
        finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True, **keywords)
        return finished.stdout.splitlines()

    return run


@pytest.mark.parametrize("repository", HOLDS)
def test_the_files_come_from_where_the_notebook_was_opened(repository, run, colab, github, tmp_path):
    branch, place = HOLDS[repository]
    told, folder = run(colab(opened(repository, branch, place)) | github)
    assert Path(folder) == (tmp_path / "a6" / place).resolve() and folder in told
    origin = subprocess.check_output(["git", "config", "remote.origin.url"], cwd=folder, encoding="utf-8")
    assert origin == f"https://github.com/{repository}\n"


@pytest.mark.parametrize("path", [DRIVE, "fileId=https%3A%2F%2Fgist.github.com%2Fsomeone%2F1", "", None])
def test_the_constant_is_taken_where_colab_tells_no_address(path, run, colab, github, tmp_path):
    """From Drive, from a gist, an answer of another form, no answer at all."""
    silent = dict(COLAB_JUPYTER_IP="127.0.0.1", KMP_TARGET_PORT="1")
    told, folder = run(github | (silent if path is None else colab(path)))
    assert Path(folder) == (tmp_path / "a6/S6/P2").resolve() and "mount Drive" in told


def test_a_second_run_and_a_restart_fetch_nothing(run, github, tmp_path):
    nowhere = instead((tmp_path / "nowhere").as_uri())
    first, again = run(github), run(nowhere, times=2)
    assert first == again and len(first) == 2


@pytest.mark.parametrize("folder", ["clone", "drive/MyDrive/Colab Notebooks/A6"])
def test_files_beside_the_notebook_are_used_without_a_word(folder, run, colab, tmp_path):
    """In a clone, and in Colab after `%cd` into the notebook's folder on a mounted Drive; nothing can be fetched."""
    copy_files(tmp_path / folder)
    environment = instead((tmp_path / "nowhere").as_uri()) | (colab(DRIVE) if "drive" in folder else {})
    assert run(environment, tmp_path / folder, times=2) == [str((tmp_path / folder).resolve())]


@pytest.mark.parametrize(
    "path, environment, reason",
    [
        (None, dict(PATH="/nowhere"), "not found"),
        (None, instead("http://127.0.0.1:1"), "unable to access"),
        (DRIVE, dict(PATH="/nowhere"), "not found"),
        (DRIVE, instead("http://127.0.0.1:1"), "unable to access"),
        (opened("someone/fork", "gone", "."), {}, "Remote branch gone not found"),
        (opened("someone/nothing", "main", "."), {}, "https://github.com/someone/nothing/blob/main/"),
    ],
)
def test_what_cannot_be_fetched_is_said_in_one_line(path, environment, reason, run, colab, github):
    """No git, no network, no such branch, no files there; `path` is what Colab tells, None on a laptop."""
    line, end = run(github | (colab(path) if path else {}) | environment)
    assert line.startswith("UsageError: ") and reason in line and end == "stopped"
    assert ("mount Drive, %cd to a folder" if path else "open a clone or ZIP") in line


@pytest.mark.parametrize("path, remedy", [(DRIVE, "Runtime version > Latest"), (None, "pip install -r")])
def test_an_old_pytorch_is_said_in_one_line(path, remedy, run, colab, tmp_path):
    copy_files(tmp_path)
    (tmp_path / "torch-2.5.1.dist-info").mkdir()
    (tmp_path / "torch-2.5.1.dist-info/METADATA").write_text("Name: torch\nVersion: 2.5.1+cu124\n", encoding="utf-8")
    line, end = run((colab(path) if path else {}) | dict(PYTHONPATH=str(tmp_path)))
    assert "installed: 2.5.1+cu124" in line and remedy in line and end == "stopped"


@pytest.mark.parametrize(
    "missing, asked",
    [
        ("ipykernel papermill nbval", []),
        ("anywidget", ["install --quiet anywidget\n"]),
        ("torchsummary anywidget ipykernel", ["install --quiet torchsummary anywidget\n"]),
    ],
)
def test_only_what_colab_lacks_is_installed(missing, asked, run, tmp_path):
    """By a stub of pip, which notes what it is asked for; a newer ipykernel would break Colab's session."""
    copy_files(tmp_path)
    (tmp_path / "pip.py").write_text("import sys\nprint(*sys.argv[1:], file=open('asked', 'w'))\n", encoding="utf-8")
    assert run({}, missing=missing) == [str(tmp_path.resolve())]
    assert [path.read_text(encoding="utf-8") for path in tmp_path.glob("asked")] == asked


def test_a_failed_installation_is_said_in_one_line(run, tmp_path):
    copy_files(tmp_path)
    (tmp_path / "pip.py").write_text("import sys\nsys.exit('WARNING: retry\\nERROR: no match')\n", encoding="utf-8")
    line, end = run({}, missing="anywidget")
    assert "anywidget" in line and "network" in line and line.endswith("ERROR: no match") and end == "stopped"


@pytest.mark.parametrize("page", ["A6.ipynb", "beyond.ipynb", "README.md"])
def test_the_badge_opens_what_the_constant_names(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    (target,) = re.findall(r"\[!\[Open in Colab\]\([^)]*\)\]\(https://colab.research.google.com/([^)]*)\)", text)
    (home,) = re.findall(r'^HOME = "https://([^"]*)"', colab_cell(), re.MULTILINE)
    assert target.replace("beyond", "A6") == home.replace("github.com", "github")


def test_what_stops_the_cell_stops_the_notebook(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in (colab_cell(), "1")])
    with pytest.raises(CellExecutionError, match="UsageError: "):
        NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert not notebook.cells[1].outputs
