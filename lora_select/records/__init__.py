"""The records that travel down the line: small, frozen, valid JSON.

Every stage of the pipeline returns exactly one of these. Tensors and tables never travel inside a record: they are files
in the stage's folder, named by a :class:`FileRef` (path relative to that folder, SHA-256). A record is therefore enough to
audit a stage, and `select` can be replayed from records alone.
"""

from lora_select.records.choice import (
    AdapterCosts,
    AdapterSpec,
    CandidateScore,
    Constraints,
    Curvature,
    Decision,
    Evidence,
    LayerSpectra,
    QuantisationError,
    Spectra,
)
from lora_select.records.codec import (
    append_line,
    digest,
    file_ref,
    finite,
    from_json,
    read,
    sha256_file,
    to_json,
    whole_lines,
    write,
    write_private,
    write_text,
)
from lora_select.records.data_gate import Drift, Finding, Gate, VersionChange
from lora_select.records.dataset import (
    BaseModel,
    Dataset,
    DatasetProfile,
    LeftOutFile,
    Quantiles,
    RejectedRows,
    SourceFile,
    SplitProfile,
)
from lora_select.records.entry import Entry
from lora_select.records.evidence import Cost, Energy, EvidenceFiles
from lora_select.records.files import FileRef
from lora_select.records.judgement import (
    Criterion,
    Evaluation,
    MetricComparison,
    Promotion,
    Report,
    Sample,
    Verdict,
)
from lora_select.records.racing import Race, Trial
from lora_select.records.retention import (
    LayerRetention,
    PathPoint,
    ReferenceJudgement,
    Retention,
    RetentionDecision,
    RetentionEvidence,
    Tolerance,
    UnitLosses,
)
from lora_select.records.training import Adapter, Range, ReloadCheck, Remedy, StepMetrics, TrainingPlan, Validation

__all__ = [
    "Adapter",
    "AdapterCosts",
    "AdapterSpec",
    "BaseModel",
    "CandidateScore",
    "Constraints",
    "Cost",
    "Criterion",
    "Curvature",
    "Dataset",
    "DatasetProfile",
    "Decision",
    "Energy",
    "Drift",
    "Entry",
    "Evaluation",
    "Evidence",
    "EvidenceFiles",
    "FileRef",
    "Finding",
    "Gate",
    "LayerRetention",
    "LayerSpectra",
    "LeftOutFile",
    "MetricComparison",
    "Trial",
    "PathPoint",
    "Promotion",
    "ReloadCheck",
    "Quantiles",
    "QuantisationError",
    "Race",
    "Range",
    "ReferenceJudgement",
    "RejectedRows",
    "Remedy",
    "Report",
    "Retention",
    "RetentionDecision",
    "RetentionEvidence",
    "Sample",
    "SourceFile",
    "Spectra",
    "SplitProfile",
    "StepMetrics",
    "Tolerance",
    "TrainingPlan",
    "UnitLosses",
    "Validation",
    "Verdict",
    "VersionChange",
    "append_line",
    "digest",
    "file_ref",
    "finite",
    "from_json",
    "read",
    "sha256_file",
    "to_json",
    "whole_lines",
    "write",
    "write_private",
    "write_text",
]
