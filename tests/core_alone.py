"""Runs commands of lora-select where only the core is installed: the extras' packages cannot be found in this process or below it.

Usage: `python core_alone.py CASES`, a JSON file of name -> arguments; prints name -> [exit code, what was printed].
As `sitecustomize` on a subprocess's path it blocks and runs nothing.
"""

import contextlib
import io
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def names(requirements: list[str]) -> set[str]:
    found = (re.match(r"[\w.-]+", one) for one in requirements)
    return {re.sub(r"[-_.]+", "-", match[0]).lower() for match in found if match}


def extras() -> set[str]:
    """The packages that only extras bring."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = {name for some in project["optional-dependencies"].values() for name in names(some)}
    return listed - names(project["dependencies"]) - {"lora-select"}


class Without:
    """A finder of modules that does not find those of some packages."""

    def __init__(self, finder, packages: set[str], modules: set[str]):
        self.finder, self.packages, self.modules = finder, packages, modules

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.modules:
            return None
        return self.finder.find_spec(name, path, target)

    def find_distributions(self, *context):
        find = getattr(self.finder, "find_distributions", None)
        for one in find(*context) if find else ():
            if one.name and re.sub(r"[-_.]+", "-", one.name).lower() not in self.packages:
                yield one

    def invalidate_caches(self):
        getattr(self.finder, "invalidate_caches", lambda: None)()


def block() -> None:
    import importlib.metadata

    packages = extras()
    homes = importlib.metadata.packages_distributions()
    gone = {
        module
        for module, brought in homes.items()
        if any(re.sub(r"[-_.]+", "-", one).lower() in packages for one in brought)
    }
    sys.meta_path[:] = [Without(finder, packages, gone) for finder in sys.meta_path]


def found(argument: str) -> str | Path:
    """The one run of a folder in the place of its name, `RUN`."""
    folder = Path(argument)
    return next(folder.parent.glob("*/stages.json")).parent if folder.name == "RUN" else argument


def run(cases: dict[str, list[str]]) -> dict[str, tuple[int, str]]:
    from lora_select.cli.main import main

    ran = {}
    for name, arguments in cases.items():
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                code = main([str(found(one)) for one in arguments])
            except SystemExit as left:
                code = int(left.code or 0)
            except Exception as error:  # a traceback is what this looks for
                code, _ = 70, said.write(f"{type(error).__name__}: {error}")
        ran[name] = (code, said.getvalue())
    return ran


if __name__ in ("__main__", "sitecustomize"):
    block()
if __name__ == "__main__":
    print(json.dumps(run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
