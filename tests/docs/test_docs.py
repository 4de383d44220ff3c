"""Pages that strangers read: made from the code where they can be, short sentences, links that lead somewhere."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
WIDE = ("log.md", "data.md", "promotion.md", "retention.md")
"""Pages whose lines are longer: the lab book, which is not written again, and those that are still to be wrapped."""
PAGES = sorted([README, *(ROOT / "docs").rglob("*.md")])
NUMBER = re.compile(r"(?<![\w.`/=-])\d[\d.,]*(?![\w`])")


def maker():
    spec = importlib.util.spec_from_file_location("make_configuration", ROOT / "docs" / "make_configuration.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prose(page: Path) -> str:
    """The text without code, tables, and pictures; of a link its words."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    lines = [line for line in text.splitlines() if not line.lstrip().startswith(("|", "#"))]
    return re.sub(r"`[^`]*`", "code", "\n".join(lines))


def sentences(text: str) -> list[str]:
    return [one for one in re.split(r"(?<=[.:!?])\s+", " ".join(text.split())) if one]


def test_configuration_is_that_of_the_code():
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == maker().page()


def test_readme_begins_with_what_a_user_writes():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert "```python" in lines[:25]
    assert len(lines) <= 140
    assert [line for line in lines if len(line) > 110 and not line.lstrip().startswith("|")] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in WIDE], ids=lambda page: page.name)
def test_lines_of_prose_are_short(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = text.partition("\n## Footnotes\n")[0]  # what others' exceptions said
    long = [line for line in text.splitlines() if len(line) > 120 and not line.lstrip().startswith("|")]
    assert long == []


def test_readme_has_few_numbers():
    text = prose(README)
    words, numbers = len(text.split()), len(NUMBER.findall(text))
    assert numbers <= 0.04 * words
    assert [one for one in sentences(text) if len(NUMBER.findall(one)) > 1] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text)
    broken = []
    for link in links:
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        place = (page.parent / target).resolve() if target else page
        if not place.exists() or (anchor and anchor not in anchors(place)):
            broken.append(link)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """The names that headings get: lower case, spaces to hyphens, other marks gone."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
