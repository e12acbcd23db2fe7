"""The notebooks as they are stored: full, real runs, top to bottom; cells are found by their tags."""

import base64
import json
import re
from unittest import mock

import nbformat
import pytest

import storage
import utils
from conftest import ROOT
from model import Net

NOTEBOOKS = {name: nbformat.read(ROOT / f"{name}.ipynb", as_version=4) for name in ("A6", "beyond")}
RECORD = storage.load_record(ROOT / "results/notebook.json")


def tagged(tag: str, name: str = "A6"):
    (cell,) = [cell for cell in NOTEBOOKS[name].cells if tag in cell.metadata.get("tags", [])]
    return cell


def printed(tag: str) -> str:
    return "".join(output.text for output in tagged(tag).outputs if output.output_type == "stream")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_cell_was_run_once_in_order_without_error_or_widget(name):
    code = [cell for cell in NOTEBOOKS[name].cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert not {"widgets", "papermill"} & set(NOTEBOOKS[name].metadata)
    assert "widget-view" not in json.dumps(outputs)


def test_nineteen_epochs_are_those_of_the_record_and_meet_the_assignment():
    lines = re.findall(r"^epoch +(\d+)/19 .*test loss [\d.]+, ([\d.]+)%", printed("training"), re.M)
    accuracies = [float(accuracy) for _, accuracy in lines]
    assert [int(epoch) for epoch, _ in lines] == list(range(1, 20)) and accuracies[-1] > 99.4
    assert accuracies == pytest.approx([100 * value for value in RECORD["history"]["test_accuracy"]], abs=0.006)
    assert [line[0] for line in printed("check").splitlines()] == [*"✓✓✓✓––"]


def test_the_committed_weights_are_those_of_the_record(mnist):
    network = storage.load_weights(Net(), ROOT / "results/weights.pt")
    assert utils.evaluate(network, *mnist[1])[1] == pytest.approx(RECORD["history"]["test_accuracy"][-1], abs=1e-4)


def test_the_record_names_the_hyperparameters_of_the_notebook():
    exec(tagged("parameters").source, names := dict(os=mock.Mock(environ={})))
    numbers = {name.lower(): value for name, value in names.items() if name.isupper()}
    assert numbers == RECORD["hyperparameters"] and numbers["epochs"] == 19
    assert "dirty" not in RECORD["commit"] and RECORD["commit"] != "unknown"


PICTURES = [("A6", "curves"), ("A6", "seeds"), ("beyond", "ingredients"), ("beyond", "frontier")]


@pytest.mark.parametrize("name, tag", PICTURES)
def test_the_pictures_of_the_readmes_are_those_of_the_notebooks(name, tag):
    (png,) = [output.data["image/png"] for output in tagged(tag, name).outputs if "image/png" in output.get("data", {})]
    assert (ROOT / f"results/{tag}.png").read_bytes() == base64.b64decode(png)
