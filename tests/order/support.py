"""What tests ask of a plan one batch at a time."""


def batch_ordinals(plan, batch, slots):
    """Ordinals that ``slots`` read in a batch."""
    return plan.ordinals(range(batch, batch + 1), slots)[0]
