"""Studies: the same numbers whoever runs them; a record counts for exactly the run that it describes."""

import contextlib
import io
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from scipy import stats

import storage
import utils
from conftest import ROOT
from experiments import report, speed
from experiments import study as study_module
from experiments.recipes import ABLATIONS, RECIPES
from experiments.study import main

RECORDED = sorted(path.name for path in (ROOT / "results/runs").iterdir())
TRY = ["--images", "300"]


@pytest.fixture(autouse=True)
def all_threads():
    """A study trains with one thread."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def studied(*arguments) -> str:
    """What `study` prints."""
    out = io.StringIO()
    with mock.patch("sys.argv", ["study", *map(str, arguments)]), contextlib.redirect_stdout(out):
        main()
    return out.getvalue()


def study(folder: Path, *arguments) -> str:
    return studied("reference", *TRY, "--set", "epochs=2", "--output", folder, *arguments)


def refused(*arguments) -> str:
    """The one line that `study` says before it ends without training."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
        studied(*arguments)
    assert end.value.code and "epoch 1/" not in out.getvalue()
    return end.value.code if isinstance(end.value.code, str) else err.getvalue().strip().splitlines()[-1]


def histories(folder: Path) -> dict[int, dict]:
    records = storage.load_records(folder / "runs" / "reference+epochs=2")
    return {r["seed"]: {name: v for name, v in r["history"].items() if name != "seconds"} for r in records}


@pytest.fixture(scope="module")
def side_by_side(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loky")
    study(folder, "--seeds", "1,2", "--jobs", "2")
    return folder


@pytest.fixture
def first_record(side_by_side):
    """A record to damage, which is restored afterwards."""
    path = side_by_side / "runs" / "reference+epochs=2" / "1.json"
    original = path.read_text(encoding="utf-8")
    yield path
    path.write_text(original, encoding="utf-8")


def test_a_study_gives_the_same_numbers_side_by_side_and_one_by_one(side_by_side, tmp_path):
    assert "0 of 1 seeds" in study(tmp_path, "--seeds", "2", "--jobs", "1")
    assert "1 of 2 seeds" in study(tmp_path, "--seeds", "1-2", "--jobs", "1")
    expected = histories(side_by_side)
    assert set(expected) == {1, 2} and expected[1] != expected[2]
    assert histories(tmp_path) == expected


def test_a_dask_cluster_gives_the_same_numbers(side_by_side, tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs `pip install -r experiments/requirements.txt`")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        study(tmp_path, "--seeds", "1,2", "--address", cluster.scheduler_address)
    assert histories(tmp_path) == histories(side_by_side)


def test_a_stopped_study_resumes_after_its_last_epoch(side_by_side, tmp_path):
    with mock.patch("utils.evaluate", side_effect=[(0.5, 0.5), KeyboardInterrupt]), pytest.raises(KeyboardInterrupt):
        study(tmp_path, "--jobs", "1")
    assert "1 epochs loaded" in study(tmp_path, "--jobs", "1")
    assert histories(tmp_path)[1]["train_loss"] == histories(side_by_side)[1]["train_loss"]


def test_validation_holds_out_the_last_training_images(tmp_path, mnist):
    study(tmp_path, "--validate", "--set", "epochs=1", "batch_size=64")
    (record,) = storage.load_records(tmp_path / "trials" / "reference+batch_size=64+epochs=1")
    assert record["tested_on"].startswith("the last 10,000 training images")
    assert record["hyperparameters"]["batch_size"] == 64
    torch.set_num_threads(1)  # as in the study, for equal sums
    (checkpoint,) = (tmp_path / "study").glob("*.pt")
    network = RECIPES["reference"].make_network()
    network.load_state_dict(storage.load(checkpoint)["network"])
    images, labels = mnist[0]
    held_out = utils.evaluate(network, images[50_000:50_300], labels[50_000:50_300])
    assert held_out == (record["history"]["test_loss"][-1], record["history"]["test_accuracy"][-1])


def test_what_teaches_is_tried_without_touching_the_results(tmp_path, monkeypatch):
    short = {name: RECIPES[name] for name in ("small-37986", "small-4962")}
    monkeypatch.setattr(study_module, "ROOT", tmp_path)
    monkeypatch.setattr(study_module, "RESULTS", tmp_path / "results")
    shutil.copytree(ROOT / "data", tmp_path / "data")
    for name, recipe in short.items():
        monkeypatch.setitem(RECIPES, name, type(recipe)(**(vars(recipe) | dict(epochs=2))))
    assert "small-37986-300-1.pt" in refused("small-4962", *TRY, "--jobs", "1")
    for _ in range(2):  # the record alone teaches nobody
        studied("small-37986", *TRY, "--jobs", "1")
        (weights,) = (tmp_path / "runs/tries/teachers").iterdir()
        weights.unlink()
    studied("small-37986", *TRY, "--jobs", "1")
    studied("small-4962", *TRY, "--jobs", "1")
    assert storage.load_records(tmp_path / "runs/tries/runs/small-4962")[0]["parameters"] == 4_962
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "part, value",
    [("trained_on", 400), ("tested_on", "the last 10,000 training images"), ("recipe", "one-cycle"), ("seed", 9)],
)
def test_a_record_of_another_run_is_not_taken_for_this_one(first_record, part, value):
    record = storage.load_record(first_record) | {part: value}
    storage.save_record(first_record, record)
    message = refused("reference", *TRY, "--set", "epochs=2", "--output", first_record.parents[2])
    assert str(first_record) in message and part in message


@pytest.mark.parametrize(
    "recipe, settings, message",
    [
        ("reference", ["learning_rat=3"], "learning_rat is no setting of a recipe; the nearest is learning_rate"),
        ("reference", ["learning_rate=abc"], "learning_rate must be float, got 'abc'"),
        ("reference", ["epochs=True"], "epochs must be int"),
        ("small-9710", ["before=8"], "before must be list or None"),
        ("reference", ["learning_rate"], "learning_rate must be float"),
        ("reference", ["max_shift=5"], "unexpected keyword argument 'max_shift'"),
        ("reference", ["dropout=1.5"], "dropout probability"),
        ("small-4962", ["after=[24,32,29]"], "change the recipe small"),
    ],
)
def test_wrong_settings_are_named(tmp_path, recipe, settings, message):
    assert message in refused(recipe, *TRY, "--jobs", "1", "--output", tmp_path, "--set", *settings)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        *((["--seeds", text], "argument --seeds") for text in ("1-", "1,,2", "a")),
        (["--set", "epochs=2"], "add --validate"),
        ([*TRY, "--output", ROOT / "results/runs"], "--output"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_in_one_line(arguments, message):
    assert message in refused("reference", *arguments)


def test_divergence_is_an_error_and_not_a_record(tmp_path):
    arguments = ["reference", *TRY, "--jobs", "1", "--output", tmp_path, "--set", "epochs=1", "learning_rate=1e38"]
    assert "the training loss became" in refused(*arguments)
    assert not list(tmp_path.rglob("*.json")) and not list(tmp_path.rglob("*.pt"))


@pytest.mark.parametrize("commit", ["unknown", "dd49fdba435d-dirty"])
def test_nothing_is_recorded_that_names_no_commit(monkeypatch, commit):
    monkeypatch.setattr(study_module, "COMMIT", commit)
    monkeypatch.setattr(study_module, "train", None)
    assert f"this is {commit}: commit first" in refused("reference", "--seeds", "99")


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_runs_are_whole(name):
    records = report.records(name)
    for record in records:
        assert {len(values) for values in record["history"].values()} == {RECIPES[name].epochs}
        assert RECIPES[name].epochs <= 19 and 0.98 < record["history"]["test_accuracy"][-1] <= 1
        assert all(record[key] for key in ("torch", "hardware", "threads", "command", "parameters"))


def test_studies_are_judged_on_other_seeds_than_they_were_chosen_on():
    trials = [path.name for path in (ROOT / "results/trials").iterdir() if path.is_dir()]
    tried = {record["seed"] for label in trials for record in report.records(label, validate=True)}
    assert {"reference", *ABLATIONS} <= set(RECORDED)
    teachers = {recipe.teacher for recipe in RECIPES.values()}
    for name in RECORDED:
        numbers = [record["seed"] for record in report.records(name)]
        if name == "reference" or name in ABLATIONS:
            assert numbers in ([1, 2, 3], list(range(1, 11))), name
        elif name not in teachers:
            assert len(numbers) == 10 and tried.isdisjoint(numbers), name


@pytest.mark.parametrize("kind, label", [("runs", "tiny-970"), ("trials", "small-9710+epochs=3")])
@pytest.mark.parametrize(
    "damage",
    [dict(commit="dd49fdba435d-dirty"), dict(commit="unknown"), dict(trained_on=400), dict(history={}), dict(seed=9)],
    ids=str,
)
def test_the_report_refuses_what_is_no_full_run_of_a_known_commit(tmp_path, monkeypatch, kind, label, damage):
    shutil.copytree(ROOT / "results" / kind / label, tmp_path / kind / label)
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    path = sorted((tmp_path / kind / label).iterdir())[0]
    records = report.records(label, validate=kind == "trials")
    storage.save_record(path, records[0] | dict(seed=int(path.stem)) | damage)
    with pytest.raises(ValueError, match=path.name):
        report.records(label, validate=kind == "trials")


def test_the_report_names_what_is_no_folder_of_records_and_single_files_of_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    for name in (".DS_Store", "my-recipe", "tiny-970"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        with pytest.raises(ValueError, match=name):
            report.seeds()
        (tmp_path / "runs" / name).rmdir()
    record = storage.load_record(ROOT / "results/own_digits.json") | dict(commit="dd49fdba435d-dirty")
    storage.save_record(tmp_path / "own_digits.json", record)
    with pytest.raises(ValueError, match="own_digits.json names no commit"):
        report.own_digits()


def test_welchs_interval_is_scipys_test():
    a, b = [0.99, 0.992, 0.995, 0.991], [0.98, 0.985, 0.979]
    difference, low, high = report.welch(a, b)
    assert difference == pytest.approx(sum(a) / 4 - sum(b) / 3) and low < difference < high
    for end in (low, high):  # a difference by an end of the interval would have p = 0.05
        shifted = [value - end for value in a]
        assert stats.ttest_ind(shifted, b, equal_var=False).pvalue == pytest.approx(0.05)


def test_speed_times_whole_trainings_that_take_turns(capsys):
    runs = speed.measure(images=1_500, most_epochs=1)
    assert [(run["loop"], run["recipe"]) for run in runs] == list(speed.PROGRAMS.values())
    for run in runs:
        assert run["seconds"] == pytest.approx(run["setup_seconds"] + sum(run["epoch_seconds"]))
        assert len(run["epoch_seconds"]) == len(run["test_accuracy"]) == 1 and run["peak_memory_mb"] > 100
    turns = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert turns[-3:] == ["epoch 1, reference", "epoch 1, ours", "epoch 1, fast"]
