"""Write the tables of README.md anew from results/.

    python experiments/report.py

Everything between `<!-- name -->` and `<!-- end -->` in README.md is replaced by what the function `name` returns.
"""

import argparse
import json
import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import utils  # noqa: E402


def notebook() -> str:
    """The goals, and what the notebook's run reached."""
    record = json.loads((ROOT / "results" / "notebook.json").read_text())
    accuracies = [100 * value for value in record["history"]["test_accuracy"]]
    return f"""\
| goal | the assignment | reference solution | this notebook (seed {record["seed"]}) |
|---|---|---|---|
| test accuracy, final epoch | > 99.4 % | 99.57 % | **{accuracies[-1]:.2f} %** |
| parameters | < 20,000 | 9,768 | **{record["parameters"]:,}** |
| epochs | < 20 | 19 | **{len(accuracies)}** |

Training took {sum(record["history"]["seconds"]) / 60:.1f} minutes on {record["threads"]} cores ({record["hardware"]},
PyTorch {record["torch"].split("+")[0]}). The best epoch on the test set, no result because it was chosen there, had
{max(accuracies):.2f} % (the reference solution's: 99.60 %)."""


def seeds() -> str:
    """One row a recipe: the final accuracies of its seeds."""
    lines = [
        "| recipe | parameters | epochs | seeds | final test accuracy, mean ± sd | min | max |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for folder in sorted((ROOT / "results" / "runs").glob("*")):
        records = utils.load_records(folder)
        final = [100 * record["history"]["test_accuracy"][-1] for record in records]
        spread = f" ± {statistics.stdev(final):.3f}" if len(final) > 1 else ""
        epochs = records[0]["hyperparameters"]["epochs"]
        lines.append(
            f"| {folder.name} | {records[0]['parameters']:,} | {epochs} | {len(final)} "
            f"| {statistics.mean(final):.3f}{spread} % | {min(final):.2f} % | {max(final):.2f} % |"
        )
    return "\n".join(lines)


def kills() -> str:
    """The count of the recorded kills."""
    record = json.loads((ROOT / "results" / "kills.json").read_text())
    verdict = "equal" if record["equal_to_the_uninterrupted_run"] else "NOT EQUAL"
    return (
        f"Recorded: **{record['kills']} kills** by SIGKILL, {record['kills_while_writing']} of them in the middle of "
        f"writing the checkpoint; **{record['lost_epochs']} lost epochs**; {record['runs_compared']} resumed runs "
        f"{verdict} bit for bit to the one that nobody killed."
    )


def own_digits() -> str:
    """How well pasted digits are read."""
    record = json.loads((ROOT / "results" / "own_digits.json").read_text())
    original, pasted = (100 * record[name] for name in ("original_accuracy", "pasted_accuracy"))
    return (
        f"Recorded: MNIST's first {record['digits']:,} test digits, each pasted at a random size and place, dark on "
        f"light or light on dark, on plain, shaded or noisy paper, are read with an accuracy of **{pasted:.2f} %**, "
        f"the originals with {original:.2f} %. {record['refused']} were refused as no single digit."
    )


def speed() -> str:
    """The reference's loop, ours and PyTorch's example, measured in turn."""
    record = json.loads((ROOT / "results" / "benchmark.json").read_text())
    ratio = {part: f"{r['median']:.1f} ({r['min']:.1f} to {r['max']:.1f})" for part, r in record["ratio"].items()}
    lines = [
        "| | reference's loop | this notebook's | ratio, median (range) |",
        "|---|---:|---:|---:|",
        "| training epoch, s | {reference} | {ours} | {train} |",
        "| training images a second | {reference_images:,} | {ours_images:,} | |",
        "| test pass | | | {test} |",
        "| set-up (this one verifies and unpacks the files every time) | | | {setup} |",
        "| peak memory, MB | {reference_memory:,} | {ours_memory:,} | |",
    ]
    names = ("reference", "ours")
    values = {name: f"{record['epoch_seconds'][name]['median']:.1f}" for name in names}
    values |= {f"{name}_images": record["images_a_second"][name] for name in names}
    values |= {f"{name}_memory": record["peak_memory_mb"][name] for name in names}
    example, share = record["example_ratio"]["median"], record["share_of_matrix_peak"]
    return "\n".join(lines).format(**values, **ratio) + (
        f"\n\nMeasured in {record['rounds']} rounds on {record['threads']} cores ({record['hardware']}, PyTorch "
        f"{record['torch'].split('+')[0]}). The convolutions of an epoch take {record['epoch_tflop']} TFLOP; the loop "
        f"does them at {share:.0%} of the speed of this machine's fastest matrix product "
        f"({record['matrix_peak_gflops']:.0f} GFLOP/s).\nAn epoch of PyTorch's own MNIST example, a network of 1.2 "
        f"million parameters, takes {example:.1f} times as long."
    )


def updated(text: str) -> str:
    """README's text with every table made anew."""
    for table in (notebook, seeds, kills, own_digits, speed):
        block = f"<!-- {table.__name__} -->\n{table()}\n<!-- end -->"
        pattern = rf"<!-- {table.__name__} -->\n.*?\n<!-- end -->"
        text, count = re.subn(pattern, block.replace("\\", r"\\"), text, flags=re.S)
        if count != 1:
            raise ValueError(
                f"README.md must have exactly one <!-- {table.__name__} --> … <!-- end -->, it has {count}"
            )
    return text


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    readme = ROOT / "README.md"
    readme.write_text(updated(readme.read_text()))


if __name__ == "__main__":
    main()
