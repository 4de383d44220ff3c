"""MkDocs reads docs/ alone: a file of the repository that a page links to is taken into the site under `files/`."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROLE = re.compile(r":(?:func|meth|class|mod|attr|data):<code>~?")
LINK = re.compile(r"(?<=\]\()(?:\.\./)+([^)#\s]+)")


def outside(page: Path, link: str, docs: Path) -> Path | None:
    """The file that a relative link of a page means, where it lies outside of docs/."""
    target = (page.parent / link).resolve()
    return None if target.is_relative_to(docs) or not target.is_file() else target


def on_files(files: Files, *, config: Any) -> Files:
    """Take in what pages link to."""
    docs = Path(config["docs_dir"]).resolve()
    for page in [file for file in files if file.is_documentation_page()]:
        source = docs / page.src_uri
        for match in LINK.finditer(source.read_text(encoding="utf-8")):
            target = outside(source, match[0], docs)
            name = target and f"files/{target.relative_to(docs.parent).as_posix()}"
            if target and name and files.get_file_from_path(name) is None:
                files.append(File.generated(config, name, abs_src_path=str(target)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:  # noqa: ARG001
    """Lead the links there."""
    docs = Path(config["docs_dir"]).resolve()
    source = docs / page.file.src_uri
    up = "../" * page.file.src_uri.count("/")

    def moved(match: re.Match[str]) -> str:
        target = outside(source, match[0], docs)
        return f"{up}files/{target.relative_to(docs.parent).as_posix()}" if target else match[0]

    return LINK.sub(moved, markdown)


def on_page_content(html: str, *, page: Any, config: Any, files: Files) -> str:  # noqa: ARG001
    """Docstrings mark names for Sphinx; here they are code alone."""
    return ROLE.sub("<code>", html)
