"""Weights as a GGUF file of llama.cpp's simple types holds them: rounded to blocks of 32 and back, without llama.cpp."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

GGUF_FORMS = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
"""Types that gguf-py itself can write. The K-quants (`Q4_K_M` and others) are made by llama.cpp alone."""
HEAD = "q8_0"
"""What holds the output head. llama.cpp takes Q8_0 where the width is no multiple of 256, else Q6_K, which gguf-py cannot write."""
BLOCK = 32
"""Weights that share a scale; a row that they do not divide stays in 16 bits, as llama.cpp leaves it."""


def round_weights(model: Any, form: str) -> None:
    """Round every weight matrix of a loaded model, in place, to what `llama-quantize --output-tensor-type q8_0` would store.

    Embeddings and linear layers are rounded; norms and biases, which GGUF keeps in float32, are not. An embedding that is also the
    output head is stored as the head.

    Args:
        model: a causal language model of `serving.llamacpp.ARCHITECTURES`.
        form: one of `GGUF_FORMS`.

    Raises:
        KeyError: an unknown form.
    """
    import torch

    head = model.get_output_embeddings()
    matrices = [one.weight for one in model.modules() if isinstance(one, torch.nn.Linear | torch.nn.Embedding)]
    for weight in {id(one): one for one in matrices}.values():
        is_head = head is not None and weight is head.weight
        with torch.no_grad():
            weight.copy_(rounded(weight, HEAD if is_head else form))


def rounded(weight: "Tensor", form: str) -> "Tensor":
    """A weight of shape (m, n) as `form` holds it, on the CPU in float32.

    Raises:
        KeyError: an unknown form.
    """
    import torch
    from gguf import GGMLQuantizationType, quants

    kind = GGMLQuantizationType[form.upper()]
    plain = weight.detach().float().cpu()
    if plain.shape[-1] % BLOCK:
        return plain.half().float()
    return torch.from_numpy(quants.dequantize(quants.quantize(plain.numpy(), kind), kind))
