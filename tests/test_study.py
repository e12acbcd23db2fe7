"""Studies: the same numbers whoever runs them; a record counts for exactly the run that it describes."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn

import storage
import utils
from experiments import report
from experiments.recipes import ABLATIONS, RECIPES
from experiments.study import Study, main

RECORDED = sorted(path.name for path in Path("results/runs").glob("*"))
TRY = ["--images", "300"]


@pytest.fixture(autouse=True)
def all_threads():
    """A study trains with one thread."""
    yield
    torch.set_num_threads(os.cpu_count())


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
    assert end.value.code and "epoch" not in out.getvalue()
    return end.value.code if isinstance(end.value.code, str) else err.getvalue().strip().splitlines()[-1]


def histories(folder: Path) -> dict[int, dict]:
    records = storage.load_records(folder / "reference+epochs=2")
    return {r["seed"]: {name: v for name, v in r["history"].items() if name != "seconds"} for r in records}


@pytest.fixture(scope="module")
def side_by_side(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loky")
    study(folder, "--seeds", "1,2", "--jobs", "2")
    return folder


@pytest.fixture
def first_record(side_by_side):
    """A record to damage, which is restored afterwards."""
    path = side_by_side / "reference+epochs=2" / "1.json"
    original = path.read_text()
    yield path
    path.write_text(original)


def test_a_study_gives_the_same_numbers_side_by_side_and_one_by_one(side_by_side, tmp_path):
    assert "0 of 1 seeds are recorded" in study(tmp_path, "--seeds", "2", "--jobs", "1")
    assert "1 of 2 seeds are recorded" in study(tmp_path, "--seeds", "1-2", "--jobs", "1")
    expected = histories(side_by_side)
    assert set(expected) == {1, 2} and expected[1] != expected[2]
    assert histories(tmp_path) == expected


def test_a_dask_cluster_gives_the_same_numbers(side_by_side, tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs `pip install -r experiments/requirements.txt`")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        study(tmp_path, "--seeds", "1,2", "--backend", "dask", "--address", cluster.scheduler_address)
    assert histories(tmp_path) == histories(side_by_side)


def test_validation_holds_out_the_last_training_images(tmp_path, mnist):
    study(tmp_path, "--validate", "--set", "epochs=1", "batch_size=64")
    (record,) = storage.load_records(tmp_path / "reference+batch_size=64+epochs=1")
    assert record["tested_on"].startswith("the last 10,000 training images")
    assert record["hyperparameters"]["batch_size"] == 64
    torch.set_num_threads(1)  # as in the study, for equal sums
    network = utils.to_device(RECIPES["reference"].network(), "cpu")
    checkpoint = tmp_path / "study" / "reference+batch_size=64+epochs=1" / "300-1.pt"
    network.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    images, labels = mnist[0]
    held_out = utils.evaluate(network, images[50_000:50_300], labels[50_000:50_300])
    assert held_out == (record["history"]["test_loss"][-1], record["history"]["test_accuracy"][-1])


def test_a_student_needs_its_teacher_of_as_many_images(tmp_path):
    quick = [*TRY, "--output", tmp_path, "--seeds", "1"]
    weights = tmp_path / "teachers" / "small-37986-300-1.pt"
    assert f"{weights} is missing" in refused("small-4962", *quick, "--set", "epochs=2")
    for _ in range(2):  # the record alone teaches nobody
        studied("small-37986", *quick)
        content = weights.read_bytes()
        weights.unlink()
    weights.write_bytes(content)
    studied("small-4962", *quick, "--set", "epochs=2")
    assert storage.load_records(tmp_path / "small-4962+epochs=2")[0]["parameters"] == 4_962


def test_a_quick_try_is_not_kept_where_results_are():
    for validate in (False, True):
        assert Study("tiny-970", {}, 400, validate, None).folder.is_relative_to(Path("runs").resolve())
        assert Study("tiny-970", {}, None, validate, None).folder.is_relative_to(Path("results").resolve())
    assert "--output" in refused("tiny-970", *TRY, "--output", "results/runs")


@pytest.mark.parametrize(
    "part, value",
    [("trained_on", 400), ("tested_on", "the last 10,000 training images"), ("recipe", "one-cycle"), ("seed", 9)],
)
def test_a_record_of_another_run_is_not_taken_for_this_one(first_record, part, value):
    first_record.write_text(json.dumps(json.loads(first_record.read_text()) | {part: value}))
    message = refused("reference", *TRY, "--set", "epochs=2", "--output", first_record.parent.parent)
    assert str(first_record) in message and part in message


@pytest.mark.parametrize("content", ["", "{", "[]", '{"recipe": "reference"}'])
def test_a_damaged_record_is_named(first_record, content):
    first_record.write_text(content)
    assert str(first_record) in refused("reference", *TRY, "--set", "epochs=2", "--output", first_record.parent.parent)


@pytest.mark.parametrize(
    "recipe, settings, message",
    [
        ("reference", ["learning_rat=3"], "learning_rat is no setting of this recipe; the nearest is learning_rate"),
        ("reference", ["foo=3"], "foo is no setting of this recipe"),
        ("reference", ["max_shift=5"], "max_shift is no setting"),
        ("reference", ["mode=bilinaer"], "cannot be trained"),
        ("reference", ["learning_rate=abc"], "learning_rate must be float, got 'abc'"),
        ("reference", ["batch_size=0"], "batch_size must be a whole number"),
        ("reference", ["batch_size=2.5"], "batch_size must be int"),
        ("reference", ["epochs=True"], "epochs must be int"),
        ("reference", ["zoom_probability=2"], "zoom_probability must be in"),
        ("reference", ["dropout=1.5"], "cannot be trained"),
        ("reference", ["learning_rate=-1"], "cannot be trained"),
        ("reference", ["gamma=0"], "gamma in"),
        ("small-9710", ["before=8"], "before must be"),
        ("one-cycle", ["epochs=1", "batch_size=300"], "one cycle cannot rise"),
        ("reference", ["learning_rate"], "must be name=value"),
        ("reference", ["=abc"], "must be name=value"),
    ],
)
def test_wrong_settings_are_named_before_training(tmp_path, recipe, settings, message):
    assert message in refused(recipe, *TRY, "--output", tmp_path, "--set", *settings)


@pytest.mark.parametrize(
    "arguments, message",
    [
        *((["--seeds", text], "must be like 1-3,7") for text in ("5-1", "1-", "1,,2", "", "a", "1-2-3")),
        *(([option, n], "of at least 1") for option in ("--jobs", "--images") for n in ("0", "1.5")),
        (["--address", "tcp://127.0.0.1:1"], "name its --backend"),
        (["--set", "epochs=2"], "add --validate"),
        (["--backend", "ray", *TRY], "ray"),
        (["--backend", "dask", "--address", "tcp://127.0.0.1:9", *TRY], "no dask cluster answers at tcp://127.0.0.1:9"),
        (["--backend", "dask", "--address", "nonsense", *TRY], "no dask cluster answers at nonsense"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_in_one_line_within_seconds(arguments, message):
    assert message in refused("reference", *arguments)


def test_output_that_cannot_be_written_is_named_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refused("reference", *TRY, "--output", tmp_path / "file")


def test_divergence_is_an_error_and_not_a_record(tmp_path):
    arguments = ["reference", *TRY, "--output", tmp_path, "--set", "epochs=1", "learning_rate=1e38"]
    assert "nothing is recorded" in refused(*arguments)
    assert not list(tmp_path.rglob("*.json")) and not list(tmp_path.rglob("*.pt"))


def test_workers_end_with_a_study_that_is_killed(tmp_path):
    arguments = ["reference", "--images", "2000", "--set", "epochs=200", "--seeds", "1,2", "--jobs", "2"]
    command = [sys.executable, "-m", "experiments.study", *arguments, "--output", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "epoch  1/" in line:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()

    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt")}
        time.sleep(4)  # an epoch of 2,000 images takes less than one
        if before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt")}:
            return
    pytest.fail("the workers go on writing checkpoints")


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_runs_are_whole(name):
    records = report.runs(name)
    assert len({record["seed"] for record in records}) == len(records)
    for record in records:
        for part in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
            assert len(record["history"][part]) == record["hyperparameters"]["epochs"] <= 19
        assert 0.98 < record["history"]["test_accuracy"][-1] <= 1
        assert record["seconds"] == pytest.approx(sum(record["history"]["seconds"]))
        for key in ("commit", "torch", "hardware", "threads", "command", "parameters"):
            assert record[key], key
        assert "dirty" not in record["commit"] and record["commit"] != "unknown"


def test_studies_are_complete_and_judged_on_other_seeds_than_they_were_chosen_on():
    trials = [path for path in Path("results/trials").iterdir() if path.is_dir()]
    tried = {record["seed"] for folder in trials for record in storage.load_records(folder)}
    assert {"reference", *ABLATIONS} <= set(RECORDED) <= set(RECIPES)
    for name in RECORDED:
        numbers = [record["seed"] for record in report.runs(name)]
        if name in ABLATIONS:
            assert numbers == [1, 2, 3], name
        elif name == "reference":
            assert numbers == list(range(1, 11))
        elif RECIPES[name].teaches:
            assert 1 in numbers
        else:
            assert len(numbers) == 10 and tried.isdisjoint(numbers), name


@pytest.mark.parametrize("name", ABLATIONS)
def test_each_ablation_changes_what_it_says(name):
    usual, changed = (RECIPES[recipe].settings() for recipe in ("reference", name))
    differences = {setting for setting in usual | changed if usual.get(setting) != changed.get(setting)}
    expected = {
        "no-batch-norm": {"network", "learning_rate"},
        "dropout-0.05": {"dropout"},
        "dropout-0.1": {"dropout"},
        "no-augmentation": {"zoom_probability", "max_degrees"},
        "fully-connected": {"network"},
        "constant-rate": {"gamma"},
        "bilinear": {"mode"},
    }
    assert differences == expected[name.removeprefix("reference-")]
    layers = [type(layer) for layer in RECIPES[name].network().modules()]
    assert (nn.BatchNorm2d in layers) == (name != "reference-no-batch-norm")
    assert (nn.Linear in layers) == (name == "reference-fully-connected")


@pytest.mark.parametrize(
    "damage", ["missing", "empty", ".DS_Store", "notes.json", "foreign folder", "short", "unknown recipe"]
)
def test_the_report_names_what_is_no_full_run(tmp_path, monkeypatch, damage):
    shutil.copytree("results/runs/tiny-970", tmp_path / "runs" / "tiny-970")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert "98.900" in report.seeds()
    path = tmp_path / "runs" / "tiny-970" / "11.json"
    if damage == "missing":
        path = tmp_path / "runs" / "tiny-970"
        for record in list(path.iterdir()):
            record.unlink()
    elif damage == "empty":
        path.write_text("")
    elif damage in (".DS_Store", "notes.json"):
        path = tmp_path / "runs" / damage
        path.write_text("")
    elif damage == "foreign folder":
        path = tmp_path / "runs" / ".ipynb_checkpoints"
        path.mkdir()
    elif damage == "short":
        path.write_text(json.dumps(json.loads(path.read_text()) | dict(trained_on=400)))
    else:
        path = tmp_path / "runs" / "my-recipe"
        path.mkdir()
    with pytest.raises(ValueError, match=path.name):
        report.seeds()
