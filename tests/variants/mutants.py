"""Single-formula errors planted in a variant's own file: which of them does its contract catch?"""

import ast
import copy
import dataclasses
import importlib
import re
import sys
import types
from pathlib import Path

import closed_forms
import contract
import torch

from lora_select.variants import VARIANTS, low_rank, residual
from lora_select.variants.base import ClosedForm

FORMULAS = ("weight_of", "num_parameters", "scale", "lora_alpha", "shared_parameters", "peft_arguments")
"""Methods whose arithmetic the contract checks."""
SHARES = ("tangent_share", "displacement")
"""Methods that the closed forms check."""
SWAPS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.MatMult: ast.Mult}


def mutants(source: str, methods: tuple[str, ...]):
    """(description, source) of every single change: an operator swapped, a number off, a transpose or a factor dropped."""
    tree = ast.parse(source)
    count = sum(1 for _ in _sites(tree, methods))
    for index in range(count):
        changed = copy.deepcopy(tree)
        node, apply, words = list(_sites(changed, methods))[index]
        apply(node)
        yield words, ast.unparse(ast.fix_missing_locations(changed))


def _sites(tree: ast.Module, methods: tuple[str, ...]):
    for owner in ast.walk(tree):
        helper = methods is FORMULAS and getattr(owner, "name", "").startswith("_")
        if isinstance(owner, ast.FunctionDef) and (owner.name in methods or helper):
            for parent in ast.walk(owner):
                if isinstance(parent, ast.BinOp):
                    yield from _operators(parent)
                if isinstance(parent, ast.Constant) and type(parent.value) in (int, float):
                    yield parent, _off_by_one, f"{parent.value} -> {parent.value + 1}"
                if isinstance(parent, ast.Attribute) and parent.attr in {"T", "mT"}:
                    yield parent, _plain, f"{ast.unparse(parent)} without its transpose"


def _operators(node: ast.BinOp):
    other = SWAPS.get(type(node.op))
    if other is not None:
        words = f"{ast.unparse(node)}: {type(node.op).__name__} -> {other.__name__}"
        yield node, lambda n, new=other: setattr(n, "op", new()), words
    if isinstance(node.op, ast.Mult | ast.MatMult | ast.Div):
        yield node, _first_alone, f"{ast.unparse(node)}: only its first part"


def _off_by_one(node: ast.Constant) -> None:
    node.value = node.value + 1


def _plain(node: ast.Attribute) -> None:
    node.attr = "real"  # of a real tensor: itself


def _first_alone(node: ast.BinOp) -> None:
    node.op, node.right = ast.Mult(), ast.Constant(1)


def load(source: str, like: type) -> type:
    """The class of the same name from changed source."""
    module = types.ModuleType(like.__module__ + "_mutant")
    sys.modules[module.__name__] = module
    exec(compile(source, module.__name__, "exec"), module.__dict__)
    return module.__dict__[like.__name__]


def survives(variant, rtol: float, shapes) -> bool:
    """Whether the contract says nothing against it."""
    try:
        for shape in shapes:
            contract.check_count(variant, shape)
            contract.check_function(variant, shape, rtol)
            contract.check_gradient(variant, at_start=False, shape=shape, rtol=rtol)
            contract.check_start(variant, shape)
    except Exception:  # an assertion, or a shape that does not fit: caught either way
        return False
    return True


def examples(name: str) -> list[tuple]:
    """The instances, tolerances and shapes of the variant's own contract test, read from it."""
    stem = next(variant.__module__ for variant in VARIANTS if variant.name == name).rpartition(".")[2]
    test = (Path(__file__).parent / f"test_{stem}.py").read_text()
    scope = dict(vars(importlib.import_module(f"lora_select.variants.{stem}")))
    found = []
    for call in re.finditer(r"(?:check_all|check_trained|check_count)\(((\w+)(?:\([^)]*\))?)(.*)", test):
        text = call.group(1)
        if "(" not in text:
            text = re.search(rf"^{text} = (.*)$", test, re.M).group(1)
        shapes = re.search(r"shapes=(\(\(.*?\)\))", call.group(3))
        rtol = 1e-5 if "rtol=1e-5" in call.group(3) else 1e-10
        found.append((eval(text, scope), rtol, eval(shapes.group(1)) if shapes else contract.SHAPES))
    found = [one for one in found if one[0].name == name]
    assert found, f"test_{stem}.py calls no contract of {name}"
    return found


def study_shared(sharers: tuple[str, ...]) -> tuple[int, list[str]]:
    """How many errors were planted in what the low-rank variants share, and which survived in every one of `sharers`."""
    torch.set_num_threads(1)
    source = Path(low_rank.__file__).read_text()
    assert _noticed(ast.unparse(ast.parse(source)), sharers) == [], "refused with nothing planted"
    planted, alive = 0, []
    for words, text in mutants(source, FORMULAS + SHARES):
        planted += 1
        if not _noticed(text, sharers):
            alive.append(f"low_rank: {words}")
    return planted, alive


def _noticed(text: str, sharers: tuple[str, ...]) -> list[str]:
    """The sharers whose contract or closed form fails on this source of the shared base."""
    try:
        for real, source in ((low_rank, text), (residual, Path(residual.__file__).read_text())):
            changed = types.ModuleType(real.__name__)
            sys.modules[real.__name__] = changed
            exec(compile(source, changed.__name__, "exec"), changed.__dict__)
        return [name for name in sharers if not _holds(name)]
    finally:
        sys.modules |= {real.__name__: real for real in (low_rank, residual)}


def _holds(name: str) -> bool:
    found = examples(name)
    kind = type(found[0][0])
    made = load(Path(sys.modules[kind.__module__].__file__).read_text(), kind)
    return all(survives(made(**_fields(one)), *rest) for one, *rest in found) and _closed(
        made(**_fields(closed_forms.example(name)))
    )


def study(stem: str) -> tuple[int, list[str]]:
    """How many errors were planted in one variant, and what survived: formulas, then closed forms."""
    torch.set_num_threads(1)
    found = examples(stem)
    kind = type(found[0][0])
    source = Path(sys.modules[kind.__module__].__file__).read_text()
    as_it_is = load(ast.unparse(ast.parse(source)), kind)
    assert all(survives(as_it_is(**_fields(one)), *rest) for one, *rest in found), (
        f"{stem} is refused with nothing planted"
    )
    planted, alive = 0, []
    for words, text in mutants(source, FORMULAS):
        planted += 1
        if _made(text, kind, lambda made: all(survives(made(**_fields(one)), *rest) for one, *rest in found)):
            alive.append(f"{stem}: {words}")
    if issubclass(kind, ClosedForm) and stem in closed_forms.NAMES:
        fields = _fields(closed_forms.example(stem))
        assert _closed(as_it_is(**fields))
        for words, text in mutants(source, SHARES):
            planted += 1
            if _made(text, kind, lambda made: _closed(made(**fields))):
                alive.append(f"{stem}: {words}")
    return planted, alive


def _made(text: str, kind: type, check) -> bool:
    """`check` of the changed class; a class that cannot be made is caught."""
    try:
        return check(load(text, kind))
    except Exception:
        return False


def _closed(variant) -> bool:
    try:
        closed_forms.check_share(variant)
        closed_forms.check_displacement(variant)
    except Exception:
        return False
    return True


def _fields(instance) -> dict:
    return {f.name: getattr(instance, f.name) for f in dataclasses.fields(instance) if f.init}
