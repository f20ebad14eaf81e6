"""The plans of an exploration, kept beside it, so that `decompose` within one of its budgets need not search again."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from cnncompress.chains.plan import Budget, Plan
from cnncompress.chains.plan_json import plan_to_json
from cnncompress.chains.plan_schema import StoredPlan
from cnncompress.errors import UsageError
from cnncompress.files.publish import write_text
from cnncompress.files.reading import MalformedError, Schema, finite, read_json
from cnncompress.files.schemas import Digest, Name
from cnncompress.pipeline.work import Work
from cnncompress.planning import plan_for
from cnncompress.terminal.console import LOG

PLANS = "plans.json"


class StoredPlans(Schema):
    """The file: plans by budget, and the key of the exploration that they are of."""

    schema_: Literal[1] = Field(alias="schema")
    key: Digest
    plans: Annotated[dict[Name, StoredPlan], Field(max_length=1000)]


@dataclass
class KnownPlans:
    """The plans in a folder by budget, as JSON values, of the network, images and settings that `key` stands for."""

    folder: Path
    key: str
    plans: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, key: str) -> KnownPlans:
        """Those in a folder; none where there is no file, or one that is damaged or of something else."""
        try:
            values = read_json(folder / PLANS, StoredPlans)
        except FileNotFoundError:
            return cls(folder, key)
        except (OSError, MalformedError) as error:
            LOG.warning("warning: %s is not used: it %s", folder / PLANS, error)
            return cls(folder, key)
        return cls(folder, key, values["plans"] if values["key"] == key else {})

    def add(self, budget: Budget, plan: Plan) -> None:
        """Keep the plan within a budget on the disk; the file is replaced as a whole."""
        self.plans[str(budget)] = finite(plan_to_json(plan))
        values = {"schema": 1, "key": self.key, "plans": self.plans}
        write_text(self.folder / PLANS, json.dumps(values, ensure_ascii=False) + "\n")

    def get(self, budget: Budget, work: Work) -> Plan | None:
        """The plan within a budget, its stages and costs counted anew; None where none can be followed."""
        values = self.plans.get(str(budget))
        if values is None:
            return None
        path, fit = str(self.folder / PLANS), work.job.fit
        try:
            plan = plan_for(values, path, work.subject.calls, work.reasons, fit.corrected, fit.metric)
        except UsageError as error:
            LOG.warning("warning: %s", error)
            return None
        numbers = ({k: v for k, v in values.get(key, {}).items() if v is not None} for key in ("rises", "achieved"))
        plan.rises, plan.achieved = numbers
        return plan
