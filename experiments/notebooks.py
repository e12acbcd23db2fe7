"""Run the notebooks in full, store them with their outputs, and put record, weights, pictures, tables in their places.

    python -m experiments.notebooks
    python -m experiments.notebooks beyond

Works in a clone of the last commit, so it finds what a reader would find and leaves runs/ as it is; what is committed
is replaced only after a run without an error.
"""

import argparse
import base64
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

import storage
from experiments import RESULTS, ROOT, report

PICTURES = "curves", "seeds", "ingredients", "frontier"  # tags of the cells whose pictures the READMEs show
NOTEBOOKS = "A6", "beyond"
WIDGET = "application/vnd.jupyter.widget-view+json"


def execute(name: str, clone: Path) -> nbformat.NotebookNode:
    """The notebook `name` of the `clone`, executed there, without what changes with every run."""
    notebook = nbformat.read(clone / f"{name}.ipynb", as_version=4)
    quiet = dict(record_timing=False, store_widget_state=False, coalesce_streams=True)
    NotebookClient(notebook, **quiet, resources=dict(metadata=dict(path=clone))).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":  # a widget, such as a progress bar, is nothing without its kernel
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
    return notebook


def save_pictures(notebook: nbformat.NotebookNode) -> None:
    """Write the picture of every cell that is tagged as one of `PICTURES` to results/."""
    for cell in notebook.cells:
        for tag in set(cell.metadata.get("tags", [])) & set(PICTURES):
            shown = [output.data for output in cell.outputs if "data" in output]
            (png,) = [data["image/png"] for data in shown if "image/png" in data]
            storage.save_bytes(RESULTS / f"{tag}.png", base64.b64decode(png))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", choices=[*NOTEBOOKS, NOTEBOOKS], default=NOTEBOOKS, metavar="notebook")
    names = parser.parse_args().notebooks
    if "A6_SMOKE" in os.environ:
        parser.error("A6_SMOKE is set: only a full run is stored; unset it")
    if subprocess.run(["git", "-C", ROOT, "status", "--porcelain"], capture_output=True, text=True).stdout:
        parser.error("there are uncommitted changes, which a record could not name: commit or stash them")
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "A6"
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        notebooks = {}
        for name in names:
            notebooks[name] = execute(name, clone)
            if name == "A6":  # whose weights `beyond` looks at
                shutil.copyfile(clone / "runs" / "weights.pt", clone / "results" / "weights.pt")
        for name, notebook in notebooks.items():
            storage.save_text(ROOT / f"{name}.ipynb", nbformat.writes(notebook) + "\n")
            save_pictures(notebook)
        if "A6" in names:
            record = storage.load_record(clone / "runs" / "record.json")
            command = shlex.join(["python", "-m", "experiments.notebooks", *sys.argv[1:]])
            storage.save_record(RESULTS / "notebook.json", record | dict(command=command))
            storage.save_bytes(RESULTS / "weights.pt", (clone / "runs" / "weights.pt").read_bytes())
    report.write()


if __name__ == "__main__":
    main()
