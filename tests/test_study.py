"""Studies: the same numbers whoever runs them; a record counts for exactly the run that it describes."""

import contextlib
import io
import shutil
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
from model import Net

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


@pytest.fixture
def full(small, monkeypatch):
    """A study that is no quick try, of two epochs with all of 300 images."""
    monkeypatch.setitem(RECIPES, "reference", RECIPES["reference"] | dict(epochs=2))
    few = tuple((images[:300], labels[:300]) for images, labels in small)
    monkeypatch.setattr("utils.load_mnist", lambda *_: few)
    return lambda folder: studied("reference", "--jobs", "1", "--output", folder)


def test_quick_tries_give_the_same_numbers_side_by_side_and_one_by_one_and_are_never_skipped(side_by_side, tmp_path):
    study(tmp_path, "--seeds", "1-2")
    one, two = histories(tmp_path).values()
    assert one != two and histories(side_by_side) == {1: one, 2: two}
    storage.save_record(tmp_path / "runs/reference+epochs=2/2.json", {})
    assert "epoch  1/2" in study(tmp_path, "--seeds", "2") and histories(tmp_path)[2] == two


def test_a_dask_cluster_gives_the_same_numbers(side_by_side, tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs `pip install -r experiments/requirements.txt`")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        study(tmp_path, "--seeds", "1,2", "--jobs", "2", "--address", cluster.scheduler_address)
    assert histories(tmp_path) == histories(side_by_side)


def test_a_stopped_study_goes_on_and_is_not_repeated_and_its_record_counts_for_no_other(full, side_by_side, tmp_path):
    with mock.patch("utils.evaluate", side_effect=[(0.5, 0.5), KeyboardInterrupt]), pytest.raises(KeyboardInterrupt):
        full(tmp_path)
    assert "1 epochs loaded" in full(tmp_path) and "1 of 1 seeds" in full(tmp_path)
    (record,) = storage.load_records(tmp_path / "runs/reference")
    assert record["history"]["train_loss"] == histories(side_by_side)[1]["train_loss"]
    storage.save_record(tmp_path / "runs/reference/1.json", record | dict(trained_on=400, seed=9))
    with pytest.raises(SystemExit, match="1.json is a record of another run: seed, trained_on"):
        full(tmp_path)


def test_validation_holds_out_the_last_training_images(mnist):
    (images, labels), _ = mnist
    trial = Study("reference", dict(batch_size=64), validate=True)
    train, held_out = trial.data()
    assert all(map(torch.equal, train + held_out, (images[:50_000], labels[:50_000], images[50_000:], labels[50_000:])))
    assert trial.folder == ROOT / "results/trials/reference+batch_size=64"
    assert trial.expected(1)["tested_on"] == "the last 10,000 training images"


def test_what_teaches_is_tried_without_touching_the_results(tmp_path, monkeypatch):
    monkeypatch.setattr(study_module, "ROOT", tmp_path)
    monkeypatch.setattr(study_module, "RESULTS", tmp_path / "results")
    shutil.copytree(ROOT / "data", tmp_path / "data")
    for name, recipe in (("small-37986", "small-37986"), ("mini-2nd", "small-4962")):  # any name will do
        monkeypatch.setitem(RECIPES, name, RECIPES[recipe] | dict(epochs=2))
    assert "small-37986-300-1.pt" in refused("mini-2nd", *TRY)
    studied("small-37986", *TRY)
    studied("mini-2nd", *TRY, "--set", "after=[24,32,29]")
    (record,) = storage.load_records(tmp_path / "runs/tries/runs/mini-2nd+after=[24,32,29]")
    assert record["parameters"] == 18_142  # 9 (8 + 8 · 8 + 8 · 24 + 24 · 32 + 32 · 29), 2 (8 + 8 + 24 + 32 + 29), 300
    assert not (tmp_path / "results").exists()


def test_wrong_settings_are_named(tmp_path):
    for setting in ("learning_rat=3", "nesterov=false"):
        assert f"{setting} is no setting of a recipe, or not of its type" in refused("reference", "--set", setting)
    assert "nothing takes stride" in refused("reference", *TRY, "--output", tmp_path, "--set", "stride=2")


def test_nothing_is_recorded_that_is_chosen_on_the_test_set_or_names_no_commit(monkeypatch):
    assert "add --validate" in refused("reference", "--set", "epochs=2")
    for commit in ("unknown", "dd49fdba435d-dirty"):
        monkeypatch.setattr(study_module, "COMMIT", commit)
        assert f"this is {commit}: commit first" in refused("reference", "--seeds", "99")


def test_studies_are_judged_on_other_seeds_than_they_were_chosen_on():
    trials = [path.name for path in (ROOT / "results/trials").iterdir() if path.is_dir()]
    tried = {record["seed"] for label in trials for record in report.records(label, validate=True)}
    teachers = {settings.get("teacher") for settings in RECIPES.values()}
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


def test_speed_times_whole_trainings_and_the_references_six_convolutions_pad(monkeypatch):
    monkeypatch.setattr(speed, "Net", lambda: network)
    network = Net()
    for loop, recipe in speed.PROGRAMS:
        run = speed.measure(loop, recipe, image_count=300)
        assert len(run["epoch_seconds"]) == len(run["test_accuracy"]) == RECIPES[recipe]["epochs"]
        assert run["peak_memory_mb"] > 100 and run["seconds"] > sum(run["epoch_seconds"])
    padded = [name for name, layer in network.named_modules() if getattr(layer, "padding_mode", "") == "replicate"]
    assert padded == [f"conv{number}.0" for number in range(1, 7)]
