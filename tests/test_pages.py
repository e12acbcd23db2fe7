"""The pages: their tables are those of the records, their links lead somewhere."""

import re

import nbformat
import pytest

from conftest import ROOT
from experiments import report


@pytest.mark.parametrize("page", report.PAGES)
def test_tables_are_those_of_the_records(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert report.updated(text, report.PAGES[page]) == text, "run `python -m experiments.report`"


def test_the_notebook_opens_with_the_goals_table_of_the_records():
    opening = nbformat.read(ROOT / "A6.ipynb", as_version=4).cells[0].source
    assert report.updated(opening, (report.result,)) == opening, "run `python -m experiments.report`"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "results/README.md"])
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", (ROOT / page).read_text(encoding="utf-8")):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_the_table_of_trials_shows_the_ten_with_the_lowest_loss_of_each_length(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["report", "--trials"])
    report.main()
    cells = re.compile(r" (\d+) \| \d+ \| (\d\.\d+) \| [\d.]+% \|$", re.M)  # epochs, loss
    every, shown = (cells.findall(text) for text in (capsys.readouterr().out, report.trials()))
    assert len(every) >= len(list((ROOT / "results/trials").iterdir()))
    for length in {epochs for epochs, _ in every}:
        losses, best = ([loss for epochs, loss in rows if epochs == length] for rows in (every, shown))
        assert best == sorted(losses)[:10]
