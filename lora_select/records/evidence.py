"""Records of the evidence: what a training cost, and the files that answer for an adapter."""

from dataclasses import dataclass

from lora_select.records.files import FileRef


@dataclass(frozen=True)
class Energy:
    """Energy in kilowatt hours and where the number is from.

    `source` is `measured` (counters of the machine: `basis` names them) or `estimated` (`basis` says from what).
    """

    kwh: float
    source: str
    basis: str


@dataclass(frozen=True)
class Cost:
    """What a training costs: floating-point operations, wall-clock hours, hours times devices, energy, money.

    `flops` counts multiplications and additions apart. `money` is None where no price was given. `when` is `planned` or `measured`.
    """

    when: str
    flops: float
    hours: float
    devices: int
    device_hours: float
    energy: Energy
    money: float | None
    currency: str
    basis: tuple[str, ...]
    """How each number was made, in sentences."""


@dataclass(frozen=True)
class EvidenceFiles:
    """The evidence folder of an adapter, each file named by path, SHA-256 and size; None for what could not be written.

    `missing` says in sentences what was not written and how to get it.
    """

    card: FileRef
    statement: FileRef
    bom: FileRef | None
    croissant: FileRef | None
    adapter_signature: FileRef | None
    evidence_signature: FileRef | None
    adapter_digest: str
    signed_by: str | None
    """SHA-256 of the public key (PEM, SubjectPublicKeyInfo); None where nothing was signed."""
    missing: tuple[str, ...]
