"""README and results/README.md: their tables and numbers are those of the code and of the records."""

import re
from pathlib import Path

import pytest

from experiments import report

README = Path("README.md").read_text()


def section(title: str) -> str:
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.M | re.S)[1]


def test_readme_fits_on_a_page():
    assert len(README.splitlines()) <= 180 and len(README.encode()) <= 14_000


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
