"""What an adapter can be answered for with, in standard forms: model card, ML-BOM, Croissant, in-toto, signature, cost."""

from lora_select.evidence.inputs import EvidenceInputs
from lora_select.evidence.write import write_evidence

__all__ = ["EvidenceInputs", "write_evidence"]
