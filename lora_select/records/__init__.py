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
    write_text,
)
from lora_select.records.data import (
    BaseModel,
    Dataset,
    DatasetProfile,
    Quantiles,
    RejectedRows,
    SourceFile,
    SplitProfile,
)
from lora_select.records.files import FileRef
from lora_select.records.judgement import Evaluation, MetricComparison, Promotion, Report, Sample
from lora_select.records.race import Probe, Race
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
from lora_select.records.training import Adapter, Proof, Range, Remedy, StepMetrics, TrainingPlan, Validation

__all__ = [
    "Adapter",
    "AdapterCosts",
    "AdapterSpec",
    "BaseModel",
    "CandidateScore",
    "Constraints",
    "Curvature",
    "Dataset",
    "DatasetProfile",
    "Decision",
    "Evaluation",
    "Evidence",
    "FileRef",
    "LayerRetention",
    "LayerSpectra",
    "MetricComparison",
    "PathPoint",
    "Probe",
    "Promotion",
    "Proof",
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
    "write_text",
]
