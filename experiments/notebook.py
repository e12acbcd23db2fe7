"""Run A6.ipynb in full, store it with its outputs, and put the record, weights and pictures of that run into results/.

    python experiments/notebook.py

Trains from scratch, whatever is in runs/. Progress: one line an epoch.
"""

import argparse
import base64
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["TQDM_DISABLE"] = "1"  # bars would be stored as dead widgets

import nbformat  # noqa: E402
import papermill  # noqa: E402

import utils  # noqa: E402

PICTURES = {  # that README shows, and what stands in the cells that draw them
    "curves": "plots.curves(",
    "misclassified": "plots.misclassified(",
    "comparison": "plots.comparison(",
    "seeds": "plots.seeds(finals | ",
    "ingredients": "plots.seeds(accuracies",
    "frontier": "plots.frontier(",
}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    os.chdir(ROOT)
    shutil.rmtree("runs", ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        executed = Path(folder) / "A6.ipynb"
        papermill.execute_notebook("A6.ipynb", executed, stdout_file=sys.stdout, progress_bar=False)
        notebook = nbformat.read(executed, as_version=4)
    notebook.metadata.pop("papermill")
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:  # what papermill adds changes with every run
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if "drawing-pad" in cell.metadata.get("tags", []):  # a widget is nothing without its kernel
            cell.outputs = []
        if not cell.metadata.get("tags"):
            cell.metadata.pop("tags", None)
    nbformat.write(notebook, "A6.ipynb")
    record = json.loads(Path("runs/reference.json").read_text())
    utils.save_record("results/notebook.json", record | dict(command="python experiments/notebook.py"))
    shutil.copyfile("runs/weights.pt", "results/weights.pt")
    for name, drawing in PICTURES.items():
        (cell,) = [cell for cell in notebook.cells if drawing in cell.source]
        (png,) = [output.data["image/png"] for output in cell.outputs if "data" in output]
        Path(f"results/{name}.png").write_bytes(base64.b64decode(png))


if __name__ == "__main__":
    main()
