"""How patient tests are with a server that goes wrong."""

from dataclasses import replace

from grpo_stream.storage.retrying_store import RetryRules

RULES = RetryRules(
    first_delay_seconds=0.001,
    max_delay_seconds=0.01,
    retry_deadline_seconds=30.0,
    stall_timeout_seconds=10.0,
    request_timeout_seconds=20.0,
)
"""Short waits between tries. A busy machine is no stall: whoever counts tries must not count it."""

HASTY_RULES = replace(
    RULES, retry_deadline_seconds=5.0, stall_timeout_seconds=0.3, request_timeout_seconds=2.0
)
"""What hangs is given up soon; a busy machine may be taken for it, so tries are only bounded."""


def rules_for(faults):
    """The rules to test the faults with, and whether the number of tries is certain."""
    hangs = not {"stall", "silent"}.isdisjoint(faults)
    return (HASTY_RULES, False) if hangs else (RULES, True)
