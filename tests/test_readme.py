"""README: its tables and numbers are those of the code and of the records."""

import json
import re
from pathlib import Path

from reference import COLUMNS, RECEPTIVE_FIELD, SUMMARY

import report
import utils

README = Path("README.md").read_text()
RECORD = json.loads(Path("results/notebook.json").read_text())


def section(title: str) -> str:
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.M | re.S)[1]


def test_model_summary_is_the_one_that_the_model_test_compares():
    assert f"```text\n{SUMMARY}```" in section("Model summary")


def test_receptive_field_table_is_the_one_that_the_model_test_compares():
    rows = [line.strip("|").split("|") for line in section("Receptive field").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells[0] == COLUMNS
    assert cells[2:] == [[str(value) for value in row] for row in RECEPTIVE_FIELD]


def test_tables_are_those_of_the_records():
    assert report.updated(README) == README, "run `python experiments/report.py`"


def test_hyperparameters_are_those_of_the_recorded_run():
    names = dict(
        epochs="epochs",
        batch_size="batch size",
        learning_rate="learning rate",
        momentum="momentum",
        dropout="dropout",
        weight_decay="weight decay",
    )
    rows = {
        name: values
        for name, *values in re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", section("Hyperparameters"), re.M)
    }
    better = utils.load_records("results/runs/one-cycle")[0]["hyperparameters"]
    for key, name in names.items():
        values = [float(re.match(r"[\d.]+", text)[0]) for text in rows[name]]
        assert values == [RECORD["hyperparameters"].get(key, 0), better[key]], name


def test_pictures_exist():
    pictures = re.findall(r"!\[[^\]]+\]\((?!http)([^)]+)\)", README)
    assert len(pictures) >= 2
    for picture in pictures:
        assert Path(picture).read_bytes().startswith(b"\x89PNG"), picture


def test_two_commands_each_a_single_line():
    for title in ("Run it", "Test it"):
        (block,) = re.findall(r"```sh\n(.*?)```", section(title), re.S)
        assert block.count("\n") == 1 and "requirements.txt" in block, title
    assert "pytest --nbval" in section("Test it")
    gate = Path(".ci/run").read_text()
    command = re.search(r"```sh\n(.*?)\n```", section("Test it"))[1]
    assert "README.md" in gate or command in gate, "the gate runs README's own test command"
