"""From a run's settings to what its preflight checks."""

from grpo_stream.stream.opening import parse_shards
from grpo_stream.train.agreement import run_settings
from grpo_stream.train.launching import Settings
from grpo_stream.train.preflight import RunChecks


def run_checks(settings: Settings) -> RunChecks:
    """What is the same everywhere, and what each node must have and reach.

    Raises:
        ConfigError: ``shards`` or ``eval_shards`` name no data set, or weights that are none.
    """
    data = settings.data
    urls = parse_shards(data.shards)[0] if data.shards else []
    urls += parse_shards(data.eval_shards)[0] if data.eval_shards else []
    return RunChecks(
        settings=run_settings(settings),
        urls=list(dict.fromkeys(urls)),
        output_dir=str(settings.args.output_dir),
        cache_dir=data.cache_dir,
    )
