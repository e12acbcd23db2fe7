"""The notebooks' first cell, in a folder with nothing but the notebook: Colab, Drive and GitHub are simulated."""

import json
import os
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

import experiments

pytestmark = pytest.mark.skipif(not shutil.which("git") or not shutil.which("curl"), reason="needs git and curl")
CELLS = {}
for notebook in ("A6", "beyond"):
    cells = nbformat.read(experiments.ROOT / f"{notebook}.ipynb", as_version=4).cells
    (CELLS[notebook],) = [cell.source for cell in cells if "colab" in cell.metadata.get("tags", [])]
RUN = """
import importlib.util, os, sys
from IPython.core.interactiveshell import InteractiveShell

cell, times, missing = sys.argv[1:]
sys.modules |= {name: None for name in missing.split()}
success = all(InteractiveShell.instance(colors="nocolor").run_cell(cell, store_history=True).success for _ in range(int(times)))
print(os.path.dirname(os.path.abspath(importlib.util.find_spec("storage").origin)) if success else "stopped")
"""
CONSTANT, FORK, ROOT, ALONE = "woncoh1/era1", "someone/fork", "someone/A6", "someone/alone"
HOLDS = {CONSTANT: ("main", "S6/P2"), FORK: ("fix/colab", "week 6/A6 copy"), ROOT: ("main", ".")}  # branch, folder


def address(repository: str, branch: str, folder: str) -> str:
    """What Colab calls `path` for a notebook opened from GitHub: the percent-encoded address, percent-encoded."""
    page = f"https://github.com/{repository}/blob/{quote(branch, '')}/{quote(folder)}/A6.ipynb".replace("/./", "/")
    return "fileId=" + quote(page, "")


OPENED = {repository: address(repository, *place) for repository, place in HOLDS.items()}
DRIVE = "fileId=1ZAqQEIxR08eODSPEHvKPwbZoioVdV8L9"


def copy_files(folder: Path) -> None:
    """The files beside the notebooks, as they are now, without a use of git."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in experiments.ROOT.iterdir():
        if path.suffix in (".py", ".txt", ".ipynb"):
            shutil.copyfile(path, folder / path.name)


@pytest.fixture(scope="module")
def github(tmp_path_factory):
    """The environment in which git finds three repositories that hold the files, and one that does not."""
    github = tmp_path_factory.mktemp("github")
    for repository, (branch, folder) in (HOLDS | {ALONE: ("main", ".")}).items():
        copy_files(github / repository / folder)
        if repository == ALONE:
            (github / repository / "set_up.py").unlink()
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        for arguments in (["init"], ["checkout", "-b", branch], ["add", "-A"], [*identity, "commit", "-m", "all"]):
            subprocess.run(["git", *arguments], cwd=github / repository, check=True, capture_output=True)
    return instead(github.as_uri())


def instead(url: str) -> dict[str, str]:
    """The environment in which git takes `url` for https://github.com."""
    return dict(GIT_CONFIG_COUNT="1", GIT_CONFIG_KEY_0=f"url.{url}.insteadOf", GIT_CONFIG_VALUE_0="https://github.com")


@pytest.fixture
def colab(tmp_path_factory):
    """A function that makes Colab's server tell `path` of the notebook; it returns the environment there."""
    answers = tmp_path_factory.mktemp("answers")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=answers))
    Thread(target=server.serve_forever, daemon=True).start()
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
    """A function that runs a notebook's first cell in a new process; it returns what is shown, line by line, and last
    the folder from which modules are imported afterwards, or "stopped"."""
    ipython = str(tmp_path_factory.mktemp("ipython"))
    usual = {name: value for name, value in os.environ.items() if name not in ("COLAB_JUPYTER_IP", "KMP_TARGET_PORT")}
    usual |= dict(IPYTHONDIR=ipython, PYTHONPATH="")

    def run(environment: dict[str, str], folder=tmp_path, notebook="A6", times=1, missing="") -> list[str]:
        command = [sys.executable, "-c", RUN, CELLS[notebook], str(times), missing]
        keywords = dict(cwd=folder, env=usual | environment, start_new_session=True, encoding="utf-8")
        finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True, **keywords)
        return finished.stdout.splitlines()

    return run


@pytest.mark.parametrize("notebook", CELLS)
@pytest.mark.parametrize("repository", HOLDS)
def test_the_files_come_from_where_the_notebook_was_opened(repository, notebook, run, colab, github, tmp_path):
    told, folder = run(colab(OPENED[repository]) | github, notebook=notebook)
    assert Path(folder) == (tmp_path / "a6" / HOLDS[repository][1]).resolve() and folder in told
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
    first, again, restarted = run(github), run(nowhere, times=2), run(nowhere)
    assert first == again == restarted and len(first) == 2


@pytest.mark.parametrize("folder", ["clone", "drive/MyDrive/Colab Notebooks/A6"])
def test_files_beside_the_notebook_are_used_without_a_word(folder, run, colab, tmp_path):
    """In a clone, and in Colab after `%cd` into the notebook's folder on a mounted Drive; nothing can be fetched."""
    copy_files(tmp_path / folder)
    environment = instead((tmp_path / "nowhere").as_uri()) | (colab(DRIVE) if "Drive" in folder else {})
    assert run(environment, tmp_path / folder, times=2) == [str((tmp_path / folder).resolve())]


@pytest.mark.parametrize(
    "path, environment, reason",
    [
        (None, dict(PATH="/nowhere"), "git: not found"),
        (None, instead("http://127.0.0.1:1"), "unable to access"),
        (OPENED[CONSTANT], dict(PATH="/nowhere"), "git: not found"),
        (OPENED[CONSTANT], instead("http://127.0.0.1:1"), "unable to access"),
        (address(FORK, "gone", "."), {}, "Remote branch gone not found"),
        (address(ALONE, "main", "."), {}, "https://github.com/someone/alone/blob/main/"),
    ],
)
def test_what_cannot_be_fetched_is_said_in_one_line(path, environment, reason, run, colab, github):
    """No git, no network, no such branch, no files there; `path` is what Colab tells, None on a laptop."""
    line, end = run(github | (colab(path) if path else {}) | environment)
    assert line.startswith("UsageError: ") and reason in line and end == "stopped"
    assert ("mount Drive and %cd to it" if path else "Clone or download it") in line


@pytest.mark.parametrize("in_colab, remedy", [(True, "Runtime version > Latest"), (False, "pip install -r")])
def test_an_old_pytorch_is_said_in_one_line(in_colab, remedy, run, colab, tmp_path):
    copy_files(tmp_path)
    (tmp_path / "torch-2.5.1.dist-info").mkdir()
    (tmp_path / "torch-2.5.1.dist-info/METADATA").write_text("Name: torch\nVersion: 2.5.1+cu124\n", encoding="utf-8")
    line, end = run((colab(DRIVE) if in_colab else {}) | dict(PYTHONPATH=str(tmp_path)))
    assert "2.5.1+cu124 is installed" in line and remedy in line and end == "stopped"


@pytest.mark.parametrize("missing", ["", "anywidget", "torchsummary anywidget"])
def test_only_what_is_missing_is_installed(missing, run, tmp_path):
    """By a stub of pip, which notes what it is asked for."""
    copy_files(tmp_path)
    (tmp_path / "pip.py").write_text("import sys\nprint(*sys.argv[1:], file=open('asked', 'w'))\n", encoding="utf-8")
    assert run({}, missing=missing) == [str(tmp_path.resolve())]
    asked = [path.read_text(encoding="utf-8") for path in tmp_path.glob("asked")]
    assert asked == ([f"install --quiet {missing}\n"] if missing else [])


def test_a_failed_installation_is_said_in_one_line(run, tmp_path):
    copy_files(tmp_path)
    (tmp_path / "pip.py").write_text("import sys\nsys.exit('WARNING: retry\\nERROR: no match')\n", encoding="utf-8")
    line, end = run({}, missing="anywidget")
    assert line.endswith("pip install anywidget. ERROR: no match") and end == "stopped"


def test_what_stops_the_cell_stops_the_notebook(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in (CELLS["A6"], "1")])
    with pytest.raises(CellExecutionError, match="UsageError: "):
        NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert not notebook.cells[1].outputs
