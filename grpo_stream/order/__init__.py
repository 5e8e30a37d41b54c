"""The order of samples, computed from integers: permutation, plans, blend, cursor.

* ``permutation``: where the samples of an epoch are in its order,
* ``epoch_plan``: lanes, the reserve, segments behind a change of lanes, stand-ins,
* ``blend``, ``weighted_rotation``: several data sets in exact shares, whose turn it is,
* ``blend_plan``: which sample of which of them fills a slot,
* ``stream_plan``: the same for a whole run, epoch after epoch,
* ``cursor``: the position that a checkpoint keeps.

docs/architecture.md has the map of all rooms.
"""
