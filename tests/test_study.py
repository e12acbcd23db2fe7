"""Studies: the same numbers whoever runs them, and records that are whole."""

import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed import LocalCluster
from torch import nn

import report
import study
import utils
from model import Net

RECIPES = sorted(path.name for path in Path("results/runs").glob("*"))


def run_study(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "experiments/study.py", "reference", "--images", "300", "--epochs", "2", *arguments]
    finished = subprocess.run([*command, "--output", str(folder)], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def histories(folder: Path) -> dict[int, dict]:
    records = utils.load_records(folder / "reference")
    return {r["seed"]: {name: v for name, v in r["history"].items() if name != "seconds"} for r in records}


def test_a_study_gives_the_same_numbers_side_by_side_one_by_one_and_on_a_dask_cluster(tmp_path):
    run_study(tmp_path / "loky", "--seeds", "1,2", "--jobs", "2")
    out = run_study(tmp_path / "one by one", "--seeds", "2", "--jobs", "1")
    assert "0 of 1 seeds are recorded already" in out
    out = run_study(tmp_path / "one by one", "--seeds", "1-2", "--jobs", "1")
    assert "1 of 2 seeds are recorded already" in out, "a stopped study goes on where it was"
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        run_study(tmp_path / "dask", "--seeds", "1,2", "--backend", "dask", "--address", cluster.scheduler_address)
    expected = histories(tmp_path / "loky")
    assert set(expected) == {1, 2} and expected[1] != expected[2]
    assert histories(tmp_path / "one by one") == histories(tmp_path / "dask") == expected


def test_validation_holds_out_the_last_training_images(tmp_path, mnist):
    run_study(tmp_path, "--seeds", "1", "--validate", "--set", "batch_size=64")
    (record,) = utils.load_records(tmp_path / "reference+batch_size=64")
    assert record["tested_on"] == "the last 10,000 training images" and record["hyperparameters"]["batch_size"] == 64
    torch.set_num_threads(1)  # as in the study, for equal sums
    try:
        network = Net().to(memory_format=torch.channels_last)
        checkpoint = torch.load(tmp_path / "study" / "reference+batch_size=64-300-1.pt", weights_only=True)
        network.load_state_dict(checkpoint["model"])
        images, labels = mnist[0]
        held_out = utils.evaluate(network, images[50_000:50_300], labels[50_000:50_300])
    finally:
        torch.set_num_threads(os.cpu_count())
    assert held_out == (record["history"]["test_loss"][-1], record["history"]["test_accuracy"][-1])


def test_a_taught_network_needs_its_teacher(tmp_path):
    command = [sys.executable, "experiments/study.py", "--seeds", "1", "--images", "300", "--epochs", "2", "--output"]
    early = subprocess.run([*command, tmp_path, "small-4962"], capture_output=True, text=True)
    weights = tmp_path / "teachers" / "small-37986-300.pt"
    assert early.returncode != 0 and f"{weights} is missing: run small-37986, seed 1" in early.stderr
    for recipe in (["small-37986"], ["small-4962"], ["small-4962", "--set", "teacher=None"]):
        subprocess.run([*command, tmp_path, *recipe], check=True, stdout=subprocess.DEVNULL)
    names = ("small-4962", "small-4962+teacher=None")
    (taught,), (alone,) = (utils.load_records(tmp_path / name) for name in names)
    assert taught["history"]["test_loss"] != alone["history"]["test_loss"]
    assert taught["parameters"] == alone["parameters"] == 4_962


@pytest.mark.parametrize("recipe", [name for name in study.RECIPES if name.startswith(("small-", "tiny-"))])
def test_small_recipes_are_named_after_their_parameters(recipe):
    network, *_ = study.build(study.RECIPES[recipe], 1)
    assert sum(parameter.numel() for parameter in network.parameters()) == int(recipe.split("-")[1])


def test_other_hyperparameters_do_not_mix_with_recorded_runs(tmp_path):
    run_study(tmp_path, "--seeds", "1")
    path = tmp_path / "reference" / "1.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | dict(hyperparameters=record["hyperparameters"] | dict(momentum=0.5))))
    command = [
        sys.executable,
        "experiments/study.py",
        "reference",
        "--seeds",
        "1",
        "--epochs",
        "2",
        "--output",
        tmp_path,
    ]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode != 0 and f"{path} was made with other hyperparameters" in finished.stderr


@pytest.mark.parametrize("recipe", RECIPES)
def test_recorded_runs_are_whole(recipe):
    records = utils.load_records(Path("results/runs") / recipe)
    assert len({record["seed"] for record in records}) == len(records)
    for record in records:
        assert record["recipe"] == recipe and record["hyperparameters"] == records[0]["hyperparameters"]
        assert record["trained_on"] == 60_000 and record["tested_on"] == "the test set"
        for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
            assert len(record["history"][name]) == record["hyperparameters"]["epochs"] <= 19, (recipe, record["seed"])
        floor = 0.5 if record["hyperparameters"].get("batch_norm", True) else 0  # without, it starts near chance
        assert all(floor < accuracy <= 1 for accuracy in record["history"]["test_accuracy"])
        assert record["history"]["test_accuracy"][-1] > 0.98
        assert record["seconds"] == pytest.approx(sum(record["history"]["seconds"]))
        for key in ("commit", "torch", "hardware", "threads", "command", "parameters"):
            assert record[key], key
        assert "dirty" not in record["commit"] and record["commit"] != "unknown"


def test_studies_that_the_notebook_shows_are_complete_and_all_seeds_fresh():
    shown = re.findall(r'final_accuracies\(\\"(.+?)\\"\)', Path("A6.ipynb").read_text())
    assert len(shown) >= 4
    seeds = {
        recipe: [record["seed"] for record in utils.load_records(Path("results/runs") / recipe)] for recipe in RECIPES
    }
    trials = [path for path in Path("results/trials").iterdir() if path.is_dir()]
    tried = {record["seed"] for folder in trials for record in utils.load_records(folder)}
    assert {"reference", *report.INGREDIENTS} < set(seeds)
    for recipe, numbers in seeds.items():
        if recipe in report.INGREDIENTS:
            assert sorted(numbers) == [1, 2, 3], recipe
        elif recipe == "reference":
            assert sorted(numbers) == list(range(1, 11))
        elif recipe in {other.get("teacher") for other in study.RECIPES.values()}:
            assert numbers == [1]
        else:
            assert recipe not in shown or len(numbers) == 10, recipe
            assert tried.isdisjoint(numbers), f"{recipe} was chosen on other seeds than it is judged by"


@pytest.mark.parametrize("recipe", sorted(report.INGREDIENTS))
def test_each_ingredient_changes_what_it_says(recipe):
    usual, changed = study.RECIPES["reference"], study.RECIPES[recipe]
    differences = {name for name in usual | changed if usual.get(name) != changed.get(name)}
    expected = {
        "no-batch-norm": {"batch_norm", "learning_rate"},
        "dropout-0.05": {"dropout"},
        "dropout-0.1": {"dropout"},
        "no-augmentation": {"zoom_probability", "max_degrees"},
        "fully-connected": {"pooling"},
        "constant-rate": {"gamma"},
        "bilinear": {"rotation"},
    }
    assert differences == expected[recipe.removeprefix("reference-")]
    network, *_, augment = study.build(changed | dict(zoom_probability=0.0), 469)
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules()) != ("batch_norm" in differences)
    assert any(isinstance(layer, nn.Linear) for layer in network.modules()) == ("pooling" in differences)
    image = torch.zeros(64, 28, 28, dtype=torch.uint8)
    image[:, 5:23, 12:16] = 255
    varied = augment(image)
    assert torch.equal(varied, image) == ("max_degrees" in differences)
    assert (len(varied.unique()) > 2) == ("rotation" in differences), "only interpolation makes grey values"


def test_readme_states_mean_and_spread_of_the_raw_runs():
    readme = Path("README.md").read_text()
    for recipe in RECIPES:
        final = [100 * r["history"]["test_accuracy"][-1] for r in utils.load_records(Path("results/runs") / recipe)]
        row = next(line for line in readme.splitlines() if line.startswith(f"| {recipe} |"))
        for number in (f"{statistics.mean(final):.3f}", f"{min(final):.2f}", f"{max(final):.2f}", f"| {len(final)} |"):
            assert number in row, (recipe, number)
