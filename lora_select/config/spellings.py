"""What a person writes, as a config holds it: memory, shares, switches, forms of weights."""

import re
from typing import Any

UNITS = {"GiB": 1.0, "MiB": 1 / 1024, "GB": 1e9 / 2**30, "MB": 1e6 / 2**30}


def gib(value: Any) -> Any:
    """Memory with a unit, in GiB; None stays None.

    Raises:
        ValueError: no number above 0, or no unit.

    Example:
        >>> gib("24GiB"), gib("512 MiB"), gib(None)
        (24.0, 0.5, None)
    """
    if value is None or isinstance(value, float):  # a float is what an earlier reading of the same config gave
        return value
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(value))
    unit = next((unit for unit in UNITS if found and unit.lower() == found[2].lower()), None)
    if found is None or unit is None or float(found[1]) <= 0:
        raise ValueError(f"must be a number above 0 with a unit ({', '.join(UNITS)}), such as 24GiB")
    return float(found[1]) * UNITS[unit]


def switched(value: Any) -> Any:
    """`off`, which YAML reads as false, is the word again.

    >>> switched(False), switched("auto")
    ('off', 'auto')
    """
    return "off" if value is False else value


def share(value: Any) -> Any:
    """A share, of the cost of a training: `300%` or `3`.

    Raises:
        ValueError: neither.

    Example:
        >>> share("5%"), share("0.05"), share(3)
        (0.05, 0.05, 3)
    """
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", value)
    if found is None:
        raise ValueError("must be a share, at least 0%, such as 300% or 3")
    return float(found[1]) / (100 if found[2] else 1)


def simple_form(value: Any) -> Any:
    """The name of a form as it is spelt here; `Q4_K_M` and its like are refused by what they are.

    Raises:
        ValueError: a K-quant or an I-quant.

    Example:
        >>> simple_form("Q4_0")
        'q4_0'
    """
    name = value.lower() if isinstance(value, str) else value
    if re.match(r"i?q\d_(k|xx?s|nl|[sm]\b)", str(name)):
        raise ValueError(
            "only llama.cpp makes K-quants and I-quants; quantise an export of the merged model with it, or take q4_0"
        )
    return name
