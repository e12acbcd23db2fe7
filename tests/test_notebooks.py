"""The notebooks as they are stored: full, real runs, top to bottom; cells are found by their tags."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest

import storage
import utils
from experiments import notebooks, report
from model import Net

NOTEBOOKS = {name: nbformat.read(f"{name}.ipynb", as_version=4) for name in notebooks.NOTEBOOKS}
RECORD = storage.load_record("results/notebook.json")
both = pytest.mark.parametrize("name", NOTEBOOKS)


def code(name: str) -> list:
    return [cell for cell in NOTEBOOKS[name].cells if cell.cell_type == "code"]


def text(name: str) -> str:
    return "\n".join(cell.source for cell in NOTEBOOKS[name].cells if cell.cell_type == "markdown")


def printed(cell) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def tagged(tag: str, name: str = "A6"):
    (cell,) = [cell for cell in NOTEBOOKS[name].cells if tag in cell.metadata.get("tags", [])]
    return cell


@both
def test_every_cell_was_run_once_in_order_without_error(name):
    assert [cell.execution_count for cell in code(name)] == list(range(1, len(code(name)) + 1))
    outputs = [output for cell in code(name) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


@both
def test_no_widget_and_no_trace_of_the_runner_is_stored(name):
    assert not {"widgets", "papermill"} & set(NOTEBOOKS[name].metadata)
    assert "widget-view" not in Path(f"{name}.ipynb").read_text()


@pytest.mark.parametrize("name, cells, words", [("A6", 70, 1_400), ("beyond", 50, 1_400)])
def test_a_notebook_is_one_sitting_and_holds_no_logic(name, cells, words):
    assert len(NOTEBOOKS[name].cells) <= cells and len(text(name).split()) <= words
    for cell in code(name):
        assert len(cell.source.splitlines()) <= 20, cell.source
        nodes = [type(node) for node in ast.walk(ast.parse(cell.source))]
        assert not {ast.FunctionDef, ast.Lambda, ast.ClassDef} & set(nodes), cell.source


def test_nineteen_epochs_are_stored_and_the_last_one_is_above_the_goal():
    pattern = r"^epoch +(\d+)/19 .*test: loss [\d.]+, accuracy +([\d.]+)%"
    lines = re.findall(pattern, printed(tagged("training")), re.M)
    assert [int(epoch) for epoch, _ in lines] == list(range(1, 20))
    accuracies = [float(accuracy) for _, accuracy in lines]
    assert accuracies[-1] > 99.4
    assert accuracies == pytest.approx([100 * value for value in RECORD["history"]["test_accuracy"]])
    assert f"{accuracies[-1]:.2f} %" in NOTEBOOKS["A6"].cells[0].source, "the goals' table quotes this run"


def test_the_committed_weights_are_those_of_the_run(mnist):
    network = storage.load_weights(Net(), "results/weights.pt")
    assert utils.evaluate(network, *mnist[1])[1] == pytest.approx(RECORD["history"]["test_accuracy"][-1], abs=1e-4)


def test_the_record_names_the_hyperparameters_of_the_notebook():
    constants = {}
    for line in ast.parse(tagged("hyperparameters").source).body:
        value = line.value.orelse if isinstance(line.value, ast.IfExp) else line.value
        if isinstance(value, ast.Constant):
            constants[line.targets[0].id.lower()] = value.value
    assert {name: constants[name] for name in RECORD["hyperparameters"]} == RECORD["hyperparameters"]
    assert len(RECORD["history"]["test_accuracy"]) == RECORD["hyperparameters"]["epochs"] == 19
    assert "dirty" not in RECORD["commit"]


def test_the_stored_numbers_are_those_of_the_recorded_seeds():
    """What the lesson printed of results/runs/reference, against mean and deviation by numpy."""
    finals = report.finals("reference")
    for number in (np.mean(finals), np.std(finals, ddof=1)):
        assert f"{100 * number:.3f}" in printed(tagged("seeds"))


@both
def test_pictures_are_stored_and_readmes_are_those_of_the_notebooks(name):
    pictures = [cell for cell in code(name) for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 5
    for tag, png in notebooks.pictures(NOTEBOOKS[name]).items():
        assert Path(f"results/{tag}.png").read_bytes() == png


def test_a_smoke_run_and_uncommitted_changes_are_not_stored(tmp_path, copy_project):
    copy_project(tmp_path)
    before = (tmp_path / "A6.ipynb").read_bytes()
    for git, message in ((False, "A6_SMOKE is set"), (True, "uncommitted changes")):
        environment = {key: value for key, value in os.environ.items() if key != "A6_SMOKE" or not git}
        if git:
            subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
        command = [sys.executable, "-m", "experiments.notebooks"]
        finished = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert finished.returncode != 0 and message in finished.stderr
    assert (tmp_path / "A6.ipynb").read_bytes() == before
