"""Run by the first cell of both notebooks: makes this folder the working folder and installs what Colab lacks."""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

COLAB = "COLAB_JUPYTER_IP" in os.environ
FOLDER = Path(__file__).resolve().parent
LACKING = "torchsummary", "anywidget"  # not all of requirements.txt: a newer ipykernel would break Colab's session


class SetUpError(RuntimeError):
    """What is missing and how to get it, which a notebook shows as one line."""

    def _render_traceback_(self) -> list:
        return [f"{type(self).__name__}: {self}"]


if Path.cwd() != FOLDER:
    os.chdir(FOLDER)
    mount = "mount Drive, " if COLAB else ""
    print(f"Files: {FOLDER}. To use your own instead, restart, {mount}%cd into their folder, and run this again.")

if sys.version_info < (3, 10):  # noqa: UP036
    raise SetUpError(f"Python 3.10 or newer is needed; this is {sys.version.split()[0]}")

lowest = re.search(r"^torch>=([\d.]+)", Path("requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)[1]
installed = next((package.version for package in importlib.metadata.distributions(name="torch")), "none")
if [int(number) for number in re.findall(r"\d+", installed)[:2]] < [int(number) for number in lowest.split(".")]:
    latest = "choose Runtime > Change runtime type > Runtime version > Latest"
    remedy = latest if COLAB else "run pip install -r requirements.txt, then restart"
    raise SetUpError(f"PyTorch {lowest} or newer is needed; installed: {installed}. To get it, {remedy}.")

missing = [name for name in LACKING if not importlib.util.find_spec(name)]
if missing:
    command = [sys.executable, "-m", "pip", "install", "--quiet", *missing]
    pip = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    if pip.returncode:
        reason = pip.stderr.strip().split("\n")[-1]
        raise SetUpError(f"Missing: {', '.join(missing)}. Connect to a network and run this again. {reason}")
    importlib.invalidate_caches()
