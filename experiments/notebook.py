"""Run A6.ipynb in full, store it with its outputs, and put the record and the weights of that run into results/.

    python experiments/notebook.py

Trains from scratch, whatever is in runs/. Progress: one line an epoch.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["TQDM_DISABLE"] = "1"  # bars would be stored as dead widgets

import nbformat  # noqa: E402
from nbclient import NotebookClient  # noqa: E402

import utils  # noqa: E402


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    os.chdir(ROOT)
    shutil.rmtree("runs", ignore_errors=True)
    notebook = nbformat.read("A6.ipynb", as_version=4)
    client = NotebookClient(notebook, record_timing=False, store_widget_state=False)
    client.on_cell_executed = lambda cell, cell_index, execute_reply: print(
        *(output.text for output in cell.get("outputs", []) if output.output_type == "stream"), sep="", flush=True
    )
    client.execute()
    nbformat.write(notebook, "A6.ipynb")
    record = json.loads(Path("runs/reference.json").read_text())
    utils.save_record("results/notebook.json", record | dict(command="python experiments/notebook.py"))
    shutil.copyfile("runs/weights.pt", "results/weights.pt")


if __name__ == "__main__":
    main()
