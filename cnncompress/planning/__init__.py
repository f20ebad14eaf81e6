"""Which layer becomes what: by a rank rule, or by a budget."""

from cnncompress.planning.rules import (
    Choice,
    RankRequest,
    check_rank,
    choose_method,
    describe_methods,
    plan,
    plan_layer,
)

__all__ = ["Choice", "RankRequest", "check_rank", "choose_method", "describe_methods", "plan", "plan_layer"]
