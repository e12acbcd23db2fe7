"""The notebook as it is stored: a full, real run, top to bottom, that reached the goal."""

import ast
import json
import os
import re
import subprocess
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

import report
import study
import utils
from model import Net

NOTEBOOK = nbformat.read("A6.ipynb", as_version=4)
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
TEXT = "\n".join(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown")
RECORD = json.loads(Path("results/notebook.json").read_text())


def printed(cell) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def cell_with(source: str):
    (cell,) = [cell for cell in CODE if source in cell.source]
    return cell


def constants_of(cell) -> dict:
    """The numbers that a cell gives names to, by name in small letters; those in a `dict(…)` by their keys."""
    constants = {}
    for line in ast.parse(cell.source).body:
        value = line.value.orelse if isinstance(line.value, ast.IfExp) else line.value
        if isinstance(value, ast.Constant):
            constants[line.targets[0].id.lower()] = value.value
        elif getattr(getattr(value, "func", None), "id", "") == "dict":
            constants |= {keyword.arg: keyword.value.value for keyword in value.keywords}
    return constants


def test_every_cell_was_run_once_in_order_without_error():
    assert [cell.execution_count for cell in CODE] == list(range(1, len(CODE) + 1))
    outputs = [output for cell in CODE for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]


def test_no_widget_and_no_smoke_run_is_stored():
    assert "widgets" not in NOTEBOOK.metadata
    assert "widget-view" not in Path("A6.ipynb").read_text()
    assert "papermill" not in Path("A6.ipynb").read_text().replace("`papermill`", "")


def test_nineteen_epochs_are_stored_and_the_last_one_is_above_the_goal():
    for checkpoint in ("one-cycle.pt", "reference.pt"):
        lines = re.findall(
            r"^epoch +(\d+)/19 .*test: loss [\d.]+, accuracy +([\d.]+)%", printed(cell_with(checkpoint)), re.M
        )
        assert [int(epoch) for epoch, _ in lines] == list(range(1, 20))
        accuracies = [float(accuracy) for _, accuracy in lines]
        assert accuracies[-1] > 99.4
    assert accuracies == pytest.approx([100 * value for value in RECORD["history"]["test_accuracy"]])
    assert f"{accuracies[-1]:.2f} %" in TEXT.split("## 1")[0], "the goals' table quotes this run"


def test_the_committed_weights_are_those_of_the_run(mnist):
    network = utils.load_weights(Net(), "results/weights.pt")
    assert utils.evaluate(network, *mnist[1])[1] == RECORD["history"]["test_accuracy"][-1]


def test_the_record_names_the_hyperparameters_of_the_notebook():
    constants = constants_of(cell_with("BATCH_SIZE = 128"))
    assert {name: constants[name] for name in RECORD["hyperparameters"]} == RECORD["hyperparameters"]
    assert len(RECORD["history"]["test_accuracy"]) == RECORD["hyperparameters"]["epochs"] == 19
    assert "dirty" not in RECORD["commit"]


def test_the_better_recipe_is_the_studys():
    names = dict(peak_rate="learning_rate", small_batch="batch_size")
    constants = constants_of(cell_with("PEAK_RATE = "))
    recipe = {names.get(name, name): value for name, value in constants.items()}
    shared = {name: RECORD["hyperparameters"][name] for name in ("epochs", "momentum", "dropout")}
    recorded = utils.load_records("results/runs/one-cycle")[0]["hyperparameters"]
    assert recipe | shared | dict(nesterov=True) == recorded == study.RECIPES["one-cycle"]


def test_the_stored_numbers_are_those_of_the_recorded_seeds():
    """What the stored cells printed of results/runs/, against means and deviations by numpy."""
    printed_of = {
        "reference": "usual = ",
        "one-cycle": "finals = {",
        "small-9710": 'final_accuracies("small-9710")',
        "small-9710-short": 'final_accuracies("small-9710-short")',
    } | {recipe: "changes = {" for recipe in report.INGREDIENTS}
    for recipe, source in printed_of.items():
        final = [record["history"]["test_accuracy"][-1] for record in utils.load_records(f"results/runs/{recipe}")]
        text = printed(cell_with(source))
        assert f"{100 * np.mean(final):.3f}" in text, recipe
        assert f"{100 * np.std(final, ddof=1):.3f}" in text, recipe


def test_augmentation_is_looked_at_as_it_is_trained_with():
    shown = re.search(r"zoom_probability=([\d.]+), max_degrees=(\d+)", cell_with("getsource(utils.augment)").source)
    assert shown.groups() == tuple(str(RECORD["hyperparameters"][name]) for name in ("zoom_probability", "max_degrees"))


def test_cells_are_short_and_introduced():
    for before, cell in zip(NOTEBOOK.cells, NOTEBOOK.cells[1:]):
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 18, cell.source
            assert before.cell_type == "markdown" or before.cell_type == "code" and len(before.source.splitlines()) <= 4


def test_pictures_are_stored():
    pictures = [cell for cell in CODE for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 9


@pytest.mark.parametrize("path", ["A6.ipynb", "README.md"])
def test_the_badge_opens_colab(path):
    text = TEXT if path.endswith("ipynb") else Path(path).read_text()
    (target,) = re.findall(r"\[!\[Open in Colab\]\([^)]*\)\]\(([^)]*)\)", text)
    repository, folder = ast.literal_eval(CODE[0].source.splitlines()[0].split(" = ")[1])
    owner = repository.removeprefix("https://github.com/")
    assert target == f"https://colab.research.google.com/github/{owner}/blob/main/{folder}/A6.ipynb"


def test_the_notebook_alone_fetches_what_it_needs(tmp_path, copy_project):
    """As in Colab: a folder with nothing but A6.ipynb, and the project in a folder of some repository."""
    remote = tmp_path / "remote"
    copy_project(remote / "S6/P2")
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for arguments in (["init", "-q"], ["add", "-A", "-f"], [*identity, "commit", "-qm", "all"]):
        subprocess.run(["git", *arguments], cwd=remote, check=True)
    alone = nbformat.from_dict(NOTEBOOK)
    alone.cells = [cell for cell in alone.cells if cell.cell_type == "code"]
    first = alone.cells[0].source
    alone.cells[0].source = first.replace("https://github.com/woncoh1/era1", remote.as_uri())
    assert alone.cells[0].source != first
    empty = tmp_path / "content"
    empty.mkdir()
    NotebookClient(alone, timeout=600, resources={"metadata": {"path": str(empty)}}).execute(
        env=os.environ | {"PYTHONPATH": ""}
    )
    (last,) = [cell for cell in alone.cells if "torch.equal(" in cell.source]
    assert printed(last) == "same predictions: True\n"
    assert sorted(path.name for path in empty.iterdir()) == ["a6"]
