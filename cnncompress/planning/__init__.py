"""Planning: the chain of each layer, by a rank rule or within a budget."""

from cnncompress.planning.budget import Planner
from cnncompress.planning.collection import Candidates, Guide, LatencyModel, in_need_of_statistics, make_candidates
from cnncompress.planning.decide import (
    choices_of,
    plan,
    plan_by_rank,
    reasons_of,
    with_reasons,
)
from cnncompress.planning.file import plan_for, read_plan
from cnncompress.planning.measured import wanted_of
from cnncompress.planning.rules import (
    Choice,
    Kept,
    RankRequest,
    check_rank,
    choose_method,
    describe_methods,
    plan_layer,
    seeded,
)
from cnncompress.planning.selecting import selecting
from cnncompress.planning.whole import network_clock, settled_table, with_random_chains

__all__ = [
    "Candidates",
    "Choice",
    "Guide",
    "Kept",
    "LatencyModel",
    "Planner",
    "RankRequest",
    "check_rank",
    "choices_of",
    "choose_method",
    "describe_methods",
    "in_need_of_statistics",
    "make_candidates",
    "network_clock",
    "plan",
    "plan_by_rank",
    "plan_for",
    "plan_layer",
    "read_plan",
    "reasons_of",
    "seeded",
    "selecting",
    "settled_table",
    "wanted_of",
    "with_random_chains",
    "with_reasons",
]
