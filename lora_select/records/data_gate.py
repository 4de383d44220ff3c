"""Records of the data gate: what each check found, and what was done about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lora_select.records.files import FileRef


@dataclass(frozen=True)
class Finding:
    """What one rule found.

    `action` is what the config says to do: refuse, warn or fix. `count` of `of` rows are concerned; `low` and `high` bound the rate of
    such rows in data of this kind (95 %, Wilson's score interval). `examples` are up to five `file:line` places with what was seen;
    `command` shows the rows; it is empty where no command can.
    """

    rule: str
    action: str
    count: int
    of: int
    low: float
    high: float
    sentence: str
    examples: tuple[str, ...]
    command: str

    @property
    def rate(self) -> float:
        """Share of the rows that are concerned."""
        return self.count / self.of if self.of else 0.0


@dataclass(frozen=True)
class Gate:
    """The gate's record: findings by rule, what was not checked and why, figures, and what was removed or redacted.

    `verdict` is ok, findings or refused. `rows` counts all canonical rows that were looked at, `kept` those that remain after fixes.
    `findings_file` lists every concerned row, None after a check that keeps no files; `removed_file` holds the rows that a fix took
    out, whole.
    """

    dataset_digest: str
    rows: int
    kept: int
    verdict: str
    actions: Mapping[str, str]
    findings: tuple[Finding, ...]
    not_checked: Mapping[str, str]
    figures: Mapping[str, float]
    rejected: Mapping[str, int]
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Files that were not read -> why."""
    notes: tuple[str, ...] = ()
    """What became of keys that the format does not use, and of turns that were changed."""
    change: str = ""
    """How the rows differ from those compared with, by digest: unchanged, grown by N rows, or what was added and removed."""
    findings_file: FileRef | None = None
    removed_file: FileRef | None = None

    @property
    def refusals(self) -> tuple[Finding, ...]:
        """Findings for which the config says to refuse."""
        return tuple(finding for finding in self.findings if finding.action == "refuse")


@dataclass(frozen=True)
class Drift:
    """Whether two datasets are alike: a classifier that is asked which one a held-out row is from.

    `auc` (0.5: it cannot tell) with a 95 % interval; `p` is the permutation test's. `because` names what differs, in words.
    """

    rows: int
    against: int
    auc: float
    low: float
    high: float
    p: float
    drifted: bool
    because: tuple[str, ...]


@dataclass(frozen=True)
class VersionChange:
    """A dataset beside an earlier one: `verdict` is unchanged, grown, shrunk, changed or drifted; the sentence says how.

    `added`, `removed` and `unchanged` count rows by digest, whatever split they are in. `drift` is None where fewer than 1 % changed.
    """

    verdict: str
    sentence: str
    added: int
    removed: int
    unchanged: int
    drift: Drift | None
    new_sources: tuple[str, ...]
    gone_sources: tuple[str, ...]
