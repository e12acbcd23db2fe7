"""Write the tables of README.md and results/README.md from the records in results/.

    python -m experiments.report

What stands between `<!-- name -->` and `<!-- end -->` there is replaced by what the function `name` returns.
"""

import argparse
import re
import statistics
from collections.abc import Iterable
from pathlib import Path

import storage
from experiments import ROOT
from experiments.recipes import ABLATIONS, AMOUNTS, RECIPES
from experiments.study import Study, check_record

RESULTS = ROOT / "results"
ACCURACY = "parameters: | seeds: | final test accuracy, mean ± sd: | min: | max:"


def _load(name: str) -> dict:
    return storage.load_record(RESULTS / f"{name}.json")


def _folders(kind: str, *files: str) -> list[Path]:
    """The folders of records in results/`kind`, beside its `files`; `ValueError` naming what is something else."""
    paths = sorted(path for path in (RESULTS / kind).iterdir() if path.name not in files)
    for path in paths:
        if not path.is_dir() or path.name.startswith("."):
            raise ValueError(f"{path} is no folder of records; move it away")
    return paths


def _recipes() -> list[str]:
    """The recorded recipes that are no ablation."""
    return [path.name for path in _folders("runs") if path.name not in ABLATIONS]


def runs(name: str) -> list[dict]:
    """The records of all seeds of the recipe `name`; `ValueError` if one is not a full run of it."""
    if name not in RECIPES:
        raise ValueError(f"results/runs/{name} belongs to no recipe of experiments/recipes.py; move it away")
    study, paths = Study(name, {}, None, False, None), storage.record_paths(RESULTS / "runs" / name)
    return [check_record(path, study.describe(int(path.stem))) for path in paths]


def final_accuracies(records: list[dict]) -> list[float]:
    """The accuracies (fractions) after the last epoch, of the test set or, in trials, of the held-out images."""
    return [record["history"]["test_accuracy"][-1] for record in records]


def finals(name: str) -> list[float]:
    """The test accuracies (fractions) after the last epoch of all seeds of the recipe `name`."""
    return final_accuracies(runs(name))


def summary(values: list[float]) -> str:
    """Mean ± standard deviation of fractions, in %."""
    spread = f" ± {100 * statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.3f}{spread} %"


def _accuracy(records: list[dict]) -> list[object]:
    """The columns `ACCURACY` of one recipe."""
    final = final_accuracies(records)
    ends = (f"{100 * end(final):.2f} %" for end in (min, max))
    return [f"{records[0]['parameters']:,}", len(final), summary(final), *ends]


def _table(header: str, rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; columns whose title in `header` ends with `:` are aligned to the right."""
    titles = header.split(" | ")
    lines = [[title.rstrip(":") for title in titles], ["---:" if title.endswith(":") else "---" for title in titles]]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in [*lines, *rows])


def result() -> str:
    """The goals, and what the notebook's run reached."""
    record = _load("notebook")
    history = record["history"]
    final, minutes = history["test_accuracy"][-1], sum(history["seconds"]) / 60
    hardware = f"{record['threads']} threads, {record['hardware']}, PyTorch {record['torch'].split('+')[0]}"
    return _table(
        f"goal | the assignment | reference solution | this notebook, seed {record['seed']}",
        [
            ("test accuracy, final epoch", "> 99.4 %", "99.57 %", f"**{100 * final:.2f} %**"),
            ("parameters", "< 20,000", "9,768", f"**{record['parameters']:,}**"),
            ("epochs", "< 20", "19", f"**{len(history['seconds'])}**"),
            ("best epoch on the test set (no result)", "", "99.60 %", f"{100 * max(history['test_accuracy']):.2f} %"),
            ("training time", "", "", f"{minutes:.1f} minutes ({hardware})"),
        ],
    )


def hyperparameters() -> str:
    """The settings of the notebook's recipe and of the one-cycle recipe, under their names in PyTorch."""
    a, b = RECIPES["reference"].settings(), RECIPES["one-cycle"].settings()
    scheduler = f"`StepLR(step_size={a['step_size']}, gamma={a['gamma']})`, in epochs"
    zoom = f"`RandomApply([CenterCrop(22), Resize(28)], p={a['zoom_probability']})`"
    amounts = " · ".join(f"{name.removeprefix('max_')} ± {b[name]:g}" for name in AMOUNTS)
    return _table(
        "hyperparameter | `A6.ipynb` | `beyond.ipynb`, one cycle",
        [
            *((name, a[name], b[name]) for name in ("epochs", "batch_size", "momentum", "nesterov", "weight_decay")),
            ("learning rate", a["learning_rate"], f"{b['learning_rate']} at its peak"),
            ("scheduler", scheduler, f'`OneCycleLR(pct_start={b["pct_start"]}, anneal_strategy="linear")`, in steps'),
            ("augmentation", f"{zoom}, `RandomRotation({a['max_degrees']})`", f"`random_affine`: {amounts}"),
            ("`Dropout2d(p)`", a["dropout"], b["dropout"]),
        ],
    )


def seeds() -> str:
    """One row per recipe: the final accuracies of its seeds."""
    accuracies = {name: _accuracy(runs(name)) for name in _recipes()}
    rows = [[f"`{name}`", RECIPES[name].title, RECIPES[name].epochs, *cells] for name, cells in accuracies.items()]
    return _table(f"recipe | description | epochs: | {ACCURACY}", rows)


def ingredients() -> str:
    """One row per ablation of the reference recipe, the best first."""
    records, rows = {name: runs(name) for name in ("reference", *ABLATIONS)}, []
    means = {name: statistics.mean(final_accuracies(records[name])) for name in records}
    for name in sorted(means, key=lambda name: -means[name]):
        change = RECIPES[name].title if name in ABLATIONS else "none"
        delta = f"{10_000 * (means[name] - means['reference']):+.0f}" if name in ABLATIONS else ""
        rows.append([f"`{name}`", change, *_accuracy(records[name]), delta])
    return _table(f"recipe | change | {ACCURACY} | Δ correct per 10,000:", rows)


def frontier() -> str:
    """Accuracy by parameters, the larger networks first: the lab's small networks, and those that others published."""
    rows = []
    for peer in _load("peers")["peers"]:
        source = f"[{peer['source']}]({peer['url']})"
        rows.append((peer["parameters"], source, peer["runs"], f"{100 * peer['accuracy']:.2f} %", peer["training"]))
    for name in _recipes():
        records = runs(name)
        count, final = records[0]["parameters"], final_accuracies(records)
        if count < 20_000:
            training = f"{RECIPES[name].title}; {RECIPES[name].epochs} epochs"
            rows.append((count, f"`{name}`", f"all of {len(final)} seeds", summary(final), training))
    rows = [(f"{count:,}", *cells) for count, *cells in sorted(rows, reverse=True)]
    return _table("parameters: | network | runs | test accuracy: | training", rows)


def trials() -> str:
    """Every trial on the held-out training images, those of equal length together, the lowest loss first."""
    rows = []
    for record in (_load("trials/screening"), _load("trials/frontier")):
        for trial in record["trials"]:
            changes = [f"{name} {value}" for name, value in trial["changed"].items() if name != "epochs"]
            epochs = trial["changed"].get("epochs", record["recipe"]["epochs"])
            setting = ", ".join([trial["network"], *changes]) + " *"
            judged = trial["validation_loss"], trial["validation_accuracy"]
            rows.append((epochs, *judged, trial["parameters"], 1, setting))
    for folder in _folders("trials", "screening.json", "frontier.json"):
        records = storage.load_records(folder)
        last = [(record["history"]["test_loss"][-1], record["history"]["test_accuracy"][-1]) for record in records]
        epochs, parameters = records[0]["hyperparameters"]["epochs"], records[0]["parameters"]
        rows.append((epochs, *map(statistics.mean, zip(*last)), parameters, len(records), f"`{folder.name}`"))
    return _table(
        "network and changes | parameters: | epochs: | seeds: | validation loss: | validation accuracy:",
        [
            (setting, f"{parameters:,}", epochs, count, f"{loss:.4f}", f"{accuracy:.2%}")
            for epochs, loss, accuracy, parameters, count, setting in sorted(rows)
        ],
    )


def kills() -> str:
    """The count of the recorded kills."""
    record = _load("kills")
    counts = [record[name] for name in ("kills", "kills_while_writing", "lost_epochs", "runs_compared")]
    equal = "yes" if record["equal_to_the_uninterrupted_run"] else "NO"
    header = "kills: | while writing: | lost epochs: | runs compared: | equal to the uninterrupted run, bit for bit"
    return _table(header, [[*counts, equal]])


def own_digits() -> str:
    """How digits in each kind of picture are read."""
    rows = [(kind, *counts.values()) for kind, counts in _load("own_digits")["kinds"].items()]
    return _table("kind of picture | right: | refused: | wrong: | wrong with p > 0.9:", rows)


def _span(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"


def speed() -> str:
    """The reference's loop and ours, measured in turn."""
    record = _load("speed")
    rows = []
    for title, part in (("training epoch, s", "train"), ("test pass, s", "test"), ("both", "epoch")):
        seconds = (f"{record['seconds'][part][loop]['median']:.1f}" for loop in ("reference", "ours"))
        rows.append((title, *seconds, _span(record["ratio"][part])))
    memory = (f"{record['peak_memory_mb'][loop]:,}" for loop in ("reference", "ours"))
    rows += [("peak memory, MB", *memory, "")]
    return _table("measure | reference's loop: | ours: | times as fast, median (range):", rows)


def time_to_goal() -> str:
    """How long it takes to a run that ends above 99.4 %, set-up included."""
    rows = []
    for way in _load("speed")["time_to_goal"]:
        minutes = f"{way['seconds']['median'] / 60:.1f}"
        rows.append((way["loop"], f"`{way['recipe']}`", way["epochs"], minutes, _span(way["ratio"])))
    return _table("loop | recipe | epochs: | minutes: | times as fast, median (range):", rows)


def steps() -> str:
    """What each change of the training loop was worth, in the order in which they were tried."""
    rows = []
    for number, step in enumerate(_load("speed")["steps"]):
        verdict = (_span(step["gain"]), "kept" if step["kept"] else "dropped") if number else ("", "")
        rows.append((step["step"], f"{step['epoch_seconds']:.1f}", *verdict))
    return _table("step | training epoch, s: | times as fast, median (range): | decision", rows)


def busy() -> str:
    """How long a training epoch takes beside other programs."""
    rows = [(f"`{waiting}`", *map(_span, row.values())) for waiting, row in _load("busy")["seconds"].items()]
    return _table("threads | alone, s per epoch: | beside a busy process: | beside another training:", rows)


PAGES = {
    "README.md": (result, hyperparameters),
    "results/README.md": (seeds, ingredients, frontier, speed, time_to_goal, steps, busy, kills, own_digits, trials),
}


def updated(text: str, tables: Iterable) -> str:
    """The `text` of a page with each of its `tables` written again."""
    for table in tables:
        name = table.__name__
        new = f"<!-- {name} -->\n{table()}\n<!-- end -->"
        text, count = re.subn(rf"<!-- {name} -->\n.*?<!-- end -->", lambda _, new=new: new, text, flags=re.S)
        if count != 1:
            raise ValueError(f"there must be exactly one <!-- {name} --> … <!-- end -->, not {count}")
    return text


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    try:
        for page, tables in PAGES.items():
            storage.save_text(ROOT / page, updated((ROOT / page).read_text(), tables))
    except (OSError, ValueError) as error:
        raise SystemExit(f"report: {error}") from None


if __name__ == "__main__":
    main()
