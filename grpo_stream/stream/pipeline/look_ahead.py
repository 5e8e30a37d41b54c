"""How far ahead a rank fetches, so that the ranks of a run do not all fetch at once.

All ranks ask for their batches together and use up what they hold at the same pace: by the same
rule, each of them would fetch its look-ahead in the same second as all others, again and again.
"""

from dataclasses import dataclass

from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.world import World

_MAX_BATCHES = 1024
_MAX_PIECES = 64
_GOLDEN = (5**0.5 - 1) / 2  # its multiples, modulo one, lie evenly however many there are


@dataclass(frozen=True)
class LookAhead:
    """Says, call by call, which generation batches a rank begins to fetch.

    What the next ``prefetch_batches`` need is fetched in any case. Beyond that a rank refills to
    ``fetch_ahead_bytes``, with 1024 batches at most, when it holds half of those bytes or less.
    Two things keep ranks apart:

    * The first fill comes in equal pieces, one for each of the first min(world size, 64) calls.
    * It ends at a level of the rank's own between the half and all that it may hold. Levels lie
      evenly, so ranks come down to the half one after another, and do so ever after.

    One rank alone fills up at once.
    """

    config: StreamConfig
    world: World

    @property
    def num_pieces(self) -> int:
        """Calls that the first fill takes; 0 for a rank alone, which only refills."""
        return min(self.world.world_size, _MAX_PIECES) if self.world.world_size > 1 else 0

    def limit(self, call: int, num_batches: int, num_bytes: float) -> int:
        """Up to how many bytes a call fetches ahead.

        Args:
            call: Calls before this one since the last seek.
            num_batches: Those held.
            num_bytes: Of those.
        """
        most = self.config.fetch_ahead_bytes
        half = most // 2
        if call >= self.num_pieces:
            # Not one batch at a time: samples that are side by side are fetched together.
            return most if num_bytes <= half else 0
        # Where batches are so small that 1024 of them are less, levels have to lie below that.
        reachable = min(most, _MAX_BATCHES * num_bytes / max(num_batches, 1))
        level = int(reachable - (reachable - half) * (self.world.rank * _GOLDEN % 1))
        return level * (call + 1) // self.num_pieces

    def has_room(self, limit: int, num_batches: int, num_bytes: float) -> bool:
        """Whether one more batch is to be fetched.

        Args:
            limit: Of this call, in bytes; 0 where only what is needed soon is to be fetched.
            num_batches: Those held, the one that the caller waits for included.
            num_bytes: Of those.
        """
        is_near = num_batches <= self.config.prefetch_batches
        return is_near or (num_batches < _MAX_BATCHES and num_bytes < limit)
