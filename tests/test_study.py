"""Studies: the same numbers whoever runs them; a record counts for exactly the run that it describes."""

import contextlib
import io
import shutil
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch

import storage
from conftest import ROOT
from experiments import report, speed
from experiments import study as study_module
from experiments.recipes import ABLATIONS, RECIPES
from experiments.study import Study, main

TRY = ["--images", "300", "--jobs", "1"]


def studied(*arguments) -> str:
    """What `study` prints."""
    out = io.StringIO()
    with mock.patch("sys.argv", ["study", *map(str, arguments)]), contextlib.redirect_stdout(out):
        main()
    return out.getvalue()


def study(folder: Path, *arguments) -> str:
    return studied("reference", *TRY, "--set", "epochs=2", "--output", folder, *arguments)


def refused(*arguments) -> str:
    """What `study` says before it ends without a training."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
        studied(*arguments)
    return end.value.code if isinstance(end.value.code, str) else err.getvalue()


def histories(folder: Path) -> dict[int, dict]:
    records = storage.load_records(folder / "runs" / "reference+epochs=2")
    return {r["seed"]: {name: v for name, v in r["history"].items() if name != "seconds"} for r in records}


@pytest.fixture(scope="module")
def side_by_side(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loky")
    study(folder, "--seeds", "1,2", "--jobs", "2")
    return folder


def test_a_study_gives_the_same_numbers_side_by_side_and_one_by_one(side_by_side, tmp_path):
    study(tmp_path, "--seeds", "2")
    assert "1 of 2 seeds" in study(tmp_path, "--seeds", "1-2")
    one, two = histories(tmp_path).values()
    assert one != two and histories(side_by_side) == {1: one, 2: two}


def test_a_dask_cluster_gives_the_same_numbers(side_by_side, tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs `pip install -r experiments/requirements.txt`")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        study(tmp_path, "--seeds", "1,2", "--jobs", "2", "--address", cluster.scheduler_address)
    assert histories(tmp_path) == histories(side_by_side)


def test_a_stopped_study_resumes_after_its_last_epoch(side_by_side, tmp_path):
    with mock.patch("utils.evaluate", side_effect=[(0.5, 0.5), KeyboardInterrupt]), pytest.raises(KeyboardInterrupt):
        study(tmp_path)
    assert "1 epochs loaded" in study(tmp_path)
    assert histories(tmp_path)[1]["train_loss"] == histories(side_by_side)[1]["train_loss"]


def test_validation_holds_out_the_last_training_images(tmp_path, mnist):
    (images, labels), _ = mnist
    train, held_out = Study("reference", validate=True).data()
    assert all(map(torch.equal, train + held_out, (images[:50_000], labels[:50_000], images[50_000:], labels[50_000:])))
    study(tmp_path, "--validate", "--set", "epochs=1", "batch_size=64")
    (record,) = storage.load_records(tmp_path / "trials" / "reference+batch_size=64+epochs=1")
    assert record["tested_on"] == "the last 10,000 training images, 300 of them"
    assert record["hyperparameters"]["batch_size"] == 64


def test_what_teaches_is_tried_without_touching_the_results(tmp_path, monkeypatch):
    monkeypatch.setattr(study_module, "ROOT", tmp_path)
    monkeypatch.setattr(study_module, "RESULTS", tmp_path / "results")
    shutil.copytree(ROOT / "data", tmp_path / "data")
    for name in ("small-37986", "small-4962"):
        monkeypatch.setitem(RECIPES, name, replace(RECIPES[name], epochs=2))
    assert "small-37986-300-1.pt" in refused("small-4962", *TRY)
    studied("small-37986", *TRY)
    studied("small-4962", *TRY)
    assert storage.load_records(tmp_path / "runs/tries/runs/small-4962")[0]["parameters"] == 4_962
    assert not (tmp_path / "results").exists()


def test_a_record_of_another_run_is_not_taken_for_this_one(side_by_side, tmp_path):
    path = tmp_path / "runs" / "reference+epochs=2" / "1.json"
    record = storage.load_record(side_by_side / path.relative_to(tmp_path))
    storage.save_record(path, record | dict(trained_on=400, seed=9))
    with pytest.raises(SystemExit, match="1.json is a record of another run: seed, trained_on"):
        study(tmp_path)


WRONG = [
    ("reference", "learning_rat=3", "learning_rat=3 is no setting"),
    ("reference", "nesterov=false", "nesterov=false is no setting of a recipe, or not of its type"),
    ("small-4962", "after=[24,32,29]", "change the recipe small"),
]


@pytest.mark.parametrize("recipe, setting, message", WRONG)
def test_wrong_settings_are_named(tmp_path, recipe, setting, message):
    assert message in refused(recipe, *TRY, "--output", tmp_path, "--set", setting)


def test_nothing_is_recorded_that_is_chosen_on_the_test_set_or_names_no_commit(monkeypatch):
    assert "add --validate" in refused("reference", "--set", "epochs=2")
    for commit in ("unknown", "dd49fdba435d-dirty"):
        monkeypatch.setattr(study_module, "COMMIT", commit)
        assert f"this is {commit}: commit first" in refused("reference", "--seeds", "99")


def test_studies_are_judged_on_other_seeds_than_they_were_chosen_on():
    trials = [path.name for path in (ROOT / "results/trials").iterdir() if path.is_dir()]
    tried = {record["seed"] for label in trials for record in report.records(label, validate=True)}
    teachers = {recipe.teacher for recipe in RECIPES.values()}
    for name in set(report.recorded()) - {"reference", *ABLATIONS, *teachers}:
        seeds = {record["seed"] for record in report.records(name)}
        assert len(seeds) == 10 and tried.isdisjoint(seeds), name


@pytest.mark.parametrize("kind, label", [("runs", "tiny-970"), ("trials", "small-9710+epochs=3")])
def test_the_report_refuses_what_is_no_full_run_of_a_known_commit(tmp_path, monkeypatch, kind, label):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    record = storage.load_record(min((ROOT / "results" / kind / label).iterdir()))
    for damage in (dict(commit="dd49fdba435d-dirty"), dict(commit="unknown"), dict(history={}), dict(trained_on=400)):
        storage.save_record(tmp_path / kind / label / f"{record['seed']}.json", record | damage)
        with pytest.raises(ValueError, match=f"{record['seed']}.json"):
            report.records(label, validate=kind == "trials")
    (tmp_path / "runs" / "my-recipe").mkdir(parents=True)
    with pytest.raises(ValueError, match="my-recipe belongs to no recipe"):
        report.seeds()


def test_speed_times_whole_trainings():
    for loop, recipe in speed.PROGRAMS:
        run = speed.measure(loop, recipe, images=300)
        assert len(run["epoch_seconds"]) == len(run["test_accuracy"]) == RECIPES[recipe].epochs
        assert run["peak_memory_mb"] > 100 and run["seconds"] > sum(run["epoch_seconds"])
