"""Write the tables of README.md, results/README.md and A6.ipynb's first cell from the records in results/.

    python -m experiments.report
    python -m experiments.report --trials

What stands between `<!-- name -->` and `<!-- end -->` there is replaced by what the function `name` returns. The second
line prints all trials instead, of which results/README.md shows the best.
"""

import argparse
from collections.abc import Callable, Iterable
from statistics import mean, median, stdev

import nbformat
from scipy import stats

import storage
from experiments import RESULTS, ROOT
from experiments.recipes import ABLATIONS, RECIPES, SECOND_LOOKS
from experiments.study import Study, change, checked
from inspection import GOAL

SPREAD = "seeds: | final test accuracy, mean ± sd: | min: | max:"
TRIAL = "network and changes | parameters: | epochs: | seeds: | validation loss: | validation accuracy:"


def records(label: str, validate: bool = False) -> list[dict]:
    """The records of all seeds of a recipe, or with `validate` those of its trials, there also of recipe+name=value.

    `ValueError` where the folder belongs to no recipe, has none, or one that does not count.
    """
    name, *changes = label.split("+")
    folder = RESULTS / ("trials" if validate else "runs") / label
    if name not in RECIPES:
        raise ValueError(f"{folder} belongs to no recipe of experiments/recipes.py; move it away")
    study = Study(name, dict(map(change, changes)), validate)
    found = [checked(path, **study.expected(int(path.stem))) for path in folder.glob("[0-9]*.json")]
    if not found:
        raise ValueError(f"{folder} holds no records; `python -m experiments.study` writes them")
    return sorted(found, key=lambda record: record["seed"])


def finals(label: str, validate: bool = False) -> list[float]:
    """The accuracies (fractions) after the last epoch of the records' runs, of test set or held-out images."""
    return [run["history"]["test_accuracy"][-1] for run in records(label, validate)]


def recorded() -> list[str]:
    """The recipes with records of the test set; `ValueError` naming what else is among them."""
    return [path.name for path in sorted((RESULTS / "runs").iterdir()) if records(path.name)]


def earlier(label: str) -> list[list[float]]:
    """The final test accuracies of each earlier set of a recipe's seeds, whose records later ones replaced."""
    sets = storage.load_record(RESULTS / "replaced.json")["sets"]
    return [one["test_accuracy"] for one in sets if one["recipe"] == label]


def marked(label: str) -> str:
    """The name of a recipe as a table shows it, with an asterisk where it is a second look at the test set."""
    return f"`{label}`" + ("\\*" if label in SECOND_LOOKS else "")


def summary(values: list[float]) -> str:
    """Mean ± standard deviation of fractions, in percent."""
    spread = f" ± {100 * stdev(values):.3f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.3f}{spread}%"


def welch(a: list[float], b: list[float]) -> tuple[float, float, float]:
    """Difference of the means, a - b, and its 95% confidence interval (low, high), for unequal variances.

    Source: B. L. Welch, The Generalization of "Student's" Problem when Several Different Population Variances are
    Involved, Biometrika 1947
    """
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    return mean(a) - mean(b), float(interval.low), float(interval.high)


def _spread(values: list[float]) -> list[str]:
    """The columns `SPREAD` of final accuracies."""
    return [str(len(values)), summary(values), f"{min(values):.2%}", f"{max(values):.2%}"]


def _table(header: str, rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; columns whose title in `header` ends with `:` are aligned to the right."""
    titles = header.split(" | ")
    lines = [[title.rstrip(":") for title in titles], ["---:" if title.endswith(":") else "---" for title in titles]]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in [*lines, *rows])


def result() -> str:
    """The goals, and what reached them: all seeds, and the run that the notebook shows."""
    rows = [("the assignment's goals", "", "> 99.4%", "", "", "< 20,000", "< 20")]
    for title, name in (("recipe of `A6.ipynb`", "reference"), (r"the same network, one cycle\*", "one-cycle")):
        values, parameters = finals(name), f"{records(name)[0]['parameters']:,}"
        count, final, lowest, _ = _spread(values)
        passed = f"{sum(value > GOAL for value in values)} of {count}"
        rows.append((title, count, f"**{final}**", lowest, passed, parameters, RECIPES[name]["epochs"]))
    record = checked(RESULTS / "notebook.json")
    seconds, final = record["history"]["seconds"], record["history"]["test_accuracy"][-1]
    title = f"the run in `A6.ipynb`, {sum(seconds) / 60:.1f} minutes"
    rows.insert(2, (title, 1, f"{final:.2%}", "", "", f"{record['parameters']:,}", len(seconds)))
    rows.append(("reference solution", 1, "99.57%", "", "", "9,768", 19))
    header = "training | seeds: | test accuracy, mean ± sd: | lowest: | above 99.4%: | parameters: | epochs:"
    return _table(header, rows)


def seeds() -> str:
    """One row per recipe that is no ablation, the larger networks first: the final accuracies of its seeds."""
    rows = []
    for name in set(recorded()) - set(ABLATIONS):
        parameters, epochs = records(name)[0]["parameters"], RECIPES[name]["epochs"]
        rows.append((-parameters, marked(name), f"{parameters:,}", epochs, *_spread(finals(name))))
    return _table(f"recipe | parameters: | epochs: | {SPREAD}", (row[1:] for row in sorted(rows)))


def ablations() -> dict[str, list[float]]:
    """The final accuracies of the seeds that learned, for each recorded change of the reference recipe.

    A seed that stays at chance is no matter of some digits: where there is one, the change's title says so.
    """
    found = {}
    for name in (name for name in ABLATIONS if (RESULTS / "runs" / name).exists()):
        every, title = finals(name), ABLATIONS[name]
        learned = [value for value in every if value > 0.5]
        if len(learned) < len(every):
            title += f" ({len(learned)} of {len(every)} seeds learned)"
        found[title] = learned
    return found


def ingredients() -> str:
    """One row per ablation of the reference recipe, the best first, with its difference to the reference."""
    reference, rows = finals("reference"), []
    for title, values in sorted(ablations().items(), key=lambda item: -mean(item[1])):
        difference, low, high = (10_000 * value for value in welch(values, reference))
        interval = f"{difference:+.1f} ({low:+.1f} to {high:+.1f})"
        rows.append([title, *_spread(values), interval, "no" if low <= 0 <= high else "yes"])
    header = f"change | {SPREAD} | Δ correct per 10,000 (95% interval): | interval excludes 0"
    chance = f"{len(rows)} comparisons; if no change mattered, {0.05 * len(rows):.2g} of the intervals would exclude 0."
    return f"{_table(header, [['none', *_spread(reference), '', ''], *rows])}\n\n{chance}"


def replaced() -> str:
    """One row per set of seeds whose records later ones replaced."""
    rows = []
    for one in storage.load_record(RESULTS / "replaced.json")["sets"]:
        values, seeds = one["test_accuracy"], one["seeds"]
        about = f"{seeds[0]}–{seeds[-1]}", summary(values), one["commit"], one["recorded"], one["replaced_because"]
        rows.append((f"`{one['recipe']}`", *about))
    return _table("recipe | seeds: | final test accuracy, mean ± sd: | made by | records in | replaced because", rows)


def peers() -> str:
    """Small networks that others published, the larger ones first."""
    rows = []
    for peer in sorted(storage.load_record(RESULTS / "peers.json")["peers"], key=lambda peer: -peer["parameters"]):
        source = f"[{peer['source']}]({peer['url']})"
        rows.append((f"{peer['parameters']:,}", source, peer["runs"], f"{peer['accuracy']:.2%}", peer["training"]))
    return _table("parameters: | network | runs | test accuracy: | training", rows)


def every_trial() -> list[tuple]:
    """Rows of every trial on the held-out training images, those of equal length together, the lowest loss first."""
    found, files = [], ("frontier.json", "screening.json")
    for record in (checked(RESULTS / "trials" / name) for name in files):
        for trial in record["trials"]:
            changes = [f"{name} {value}" for name, value in trial["changed"].items() if name != "epochs"]
            epochs = trial["changed"].get("epochs", record["recipe"]["epochs"])
            name = ", ".join([trial["network"], *changes]) + " *"
            found.append((epochs, trial["validation_loss"], trial["validation_accuracy"], trial["parameters"], 1, name))
    for label in sorted(path.name for path in (RESULTS / "trials").iterdir() if path.name not in files):
        runs = records(label, validate=True)
        loss, accuracy = mean(run["history"]["test_loss"][-1] for run in runs), mean(finals(label, validate=True))
        epochs, parameters = runs[0]["hyperparameters"]["epochs"], runs[0]["parameters"]
        found.append((epochs, loss, accuracy, parameters, len(runs), f"`{label}`"))
    return [
        (name, f"{parameters:,}", epochs, seeds, f"{loss:.4f}", f"{accuracy:.2%}")
        for epochs, loss, accuracy, parameters, seeds, name in sorted(found)
    ]


def trials() -> str:
    """Of the trials of each length the ten with the lowest loss."""
    every, best = every_trial(), []
    for epochs in dict.fromkeys(row[2] for row in every):
        best += [row for row in every if row[2] == epochs][:10]
    rule = "These are, of each number of epochs, the ten trials with the lowest loss"
    return f"{_table(TRIAL, best)}\n\n{rule}; `python -m experiments.report --trials` prints all {len(every)}."


def own_digits() -> str:
    """How digits in each kind of picture are read."""
    rows = [(kind, *counts.values()) for kind, counts in checked(RESULTS / "own_digits.json")["kinds"].items()]
    return _table("kind of picture | right: | refused: | wrong: | wrong with p > 0.9:", rows)


def speed() -> str:
    """Whole trainings with the reference's loop, with ours, and with the fastest recipe."""
    runs, rows = checked(RESULTS / "speed.json")["runs"], []
    for run in runs:
        epochs, seconds, final = run["epoch_seconds"], run["seconds"], f"{run['test_accuracy'][-1]:.2%}"
        row = run["loop"], f"`{run['recipe']}`", len(epochs), f"{median(epochs):.1f}", f"{seconds:.0f}"
        rows.append((*row, f"{runs[0]['seconds'] / seconds:.1f}", final, f"{run['peak_memory_mb']:,}"))
    columns = "epochs: | median epoch, s: | whole run, s: | times as fast: | final accuracy: | peak memory, MB:"
    return _table(f"loop | recipe | {columns}", rows)


PAGES: dict[str, tuple[Callable[[], str], ...]] = {
    "README.md": (result,),
    "results/README.md": (seeds, replaced, ingredients, peers, speed, own_digits, trials),
}


def updated(text: str, tables: Iterable[Callable[[], str]]) -> str:
    """The `text` of a page with each of its `tables` written again; `ValueError` if it does not have it once."""
    for table in tables:
        mark = f"<!-- {table.__name__} -->"
        before, after = text.split(mark)
        text = f"{before}{mark}\n{table()}\n<!-- end -->{after.partition('<!-- end -->')[2]}"
    return text


def write() -> None:
    """Write the tables of all pages, and the goals' table in the first cell of A6.ipynb."""
    for page, tables in PAGES.items():
        storage.save_text(ROOT / page, updated((ROOT / page).read_text(encoding="utf-8"), tables))
    notebook = nbformat.read(ROOT / "A6.ipynb", as_version=4)
    notebook.cells[0].source = updated(notebook.cells[0].source, (result,))
    storage.save_text(ROOT / "A6.ipynb", nbformat.writes(notebook) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", action="store_true", help="print every trial, and write nothing")
    if parser.parse_args().trials:
        print(_table(TRIAL, every_trial()))
    else:
        write()


if __name__ == "__main__":
    main()
