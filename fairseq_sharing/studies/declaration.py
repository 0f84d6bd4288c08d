"""Keep the declaration of a study next to its results, so that a report shows what was decided before training."""

from __future__ import annotations

import yaml

from fairseq_sharing.experiment.study import COMPARE_KEYS
from fairseq_sharing.files import write_text
from fairseq_sharing.reporting.comparison_plan import DECLARATION, read_declaration
from fairseq_sharing.studies.plan import StudyPlan


def write_declaration(plan: StudyPlan) -> None:
    """Write the question, the comparison and the declared runs of a study to its results.

    If the comparison has changed since a result was written, the earlier one is kept under ``earlier``.
    """
    file = plan.results / DECLARATION
    before = read_declaration(file)
    compare = {name: getattr(plan.study, name) for name in COMPARE_KEYS}
    earlier = list(before["earlier"])
    if before["compare"] and before["compare"] != compare and any(plan.results.glob("*.json")):
        earlier.append(before["compare"])
    declared = {
        "study": plan.study.name,
        "question": plan.study.question,
        "compare": compare,
        "earlier": [comparison for comparison in earlier if comparison != compare],
        "seeds": {row: list(plan.study.seeds_of(row)) for row in plan.study.rows},
    }
    if declared != before:
        write_text(file, yaml.safe_dump(declared, sort_keys=False, allow_unicode=True))
