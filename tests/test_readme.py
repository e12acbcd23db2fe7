"""README and results/README.md: their tables and numbers are those of the code and of the records."""

import re
from pathlib import Path

import pytest

from experiments import report
from reference import COLUMNS, RECEPTIVE_FIELD, SUMMARY

README = Path("README.md").read_text()


def section(title: str) -> str:
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.M | re.S)[1]


def test_readme_fits_on_a_page():
    assert len(README.splitlines()) <= 180 and len(README.encode()) <= 14_000


def test_model_summary_is_the_one_that_the_model_test_compares():
    assert f"```text\n{SUMMARY}```" in section("Model summary")


def test_receptive_field_table_is_the_one_that_the_model_test_compares():
    rows = [line.strip("|").split("|") for line in section("Receptive field").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells[0] == COLUMNS
    assert cells[2:] == [[str(value) for value in row] for row in RECEPTIVE_FIELD]


@pytest.mark.parametrize("page", report.PAGES)
def test_tables_are_those_of_the_records(page):
    text = Path(page).read_text()
    assert report.updated(text, report.PAGES[page]) == text, "run `python -m experiments.report`"


@pytest.mark.parametrize("page", report.PAGES)
def test_every_row_of_a_table_has_as_many_cells_as_its_header(page):
    for table in re.findall(r"(?:^\|.*\n)+", Path(page).read_text(), re.M):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table[:200]


def test_links_and_pictures_exist():
    for page in ("README.md", "CONTRIBUTING.md", "results/README.md"):
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", Path(page).read_text()):
            assert (Path(page).parent / target).exists(), (page, target)


def test_two_commands_each_a_single_line():
    for title in ("Run it", "Test it"):
        (block,) = re.findall(r"```sh\n(.*?)```", section(title), re.S)
        assert block.count("\n") == 1 and "requirements.txt" in block, title
