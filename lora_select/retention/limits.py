"""How much of the base model's knowledge an adapter may cost, by set of reference text."""

from collections.abc import Mapping, Sequence

from lora_select.errors import InputError
from lora_select.records import ReferenceJudgement


def over_limit(
    references: Sequence[ReferenceJudgement], arm: str, limits: float | Mapping[str, float]
) -> tuple[str, ...]:
    """A sentence for each set whose loss rose over its limit; none where all keep it.

    Args:
        references: the sets that judged.
        arm: whose rise counts, such as `filter` or `champion`.
        limits: nats per token for every set, or by name; a set without a limit of its own has none.

    Raises:
        InputError: a limit names no set.
    """
    named = {one.name: one.rise[arm] for one in references}
    wanted = dict.fromkeys(named, limits) if isinstance(limits, int | float) else limits
    unknown = sorted(set(wanted) - set(named))
    if unknown:
        raise InputError(
            f"`promotion.max_forgetting` names {unknown[0]}, which is no reference set; sets: {', '.join(named)}"
        )
    return tuple(
        f"loss on {name} rose by {named[name].difference:+.3f} nats a token "
        f"[{named[name].interval[0]:+.3f}, {named[name].interval[1]:+.3f}], over the limit of {limit:g}"
        for name, limit in wanted.items()
        if named[name].difference > limit
    )
