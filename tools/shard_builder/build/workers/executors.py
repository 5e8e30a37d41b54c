"""Who builds the chunks: this machine's processes, or a Ray cluster. The bytes are the same."""

from shard_builder.build.build_settings import BuildSettings
from shard_builder.build.workers.worker import Job
from shard_builder.build.workers.worker_pool import Crew, start_crew


def crew_of(settings: BuildSettings, job: Job) -> Crew:
    """The crew that the settings ask for; starting one takes a while in the background.

    Args:
        settings: Of the build, checked.
        job: What to do with the chunks.

    Raises:
        ConfigError: no Ray cluster can be reached or started.
    """
    if settings.executor == "ray":
        from shard_builder.build.workers.ray_crew import RayCrew  # noqa: PLC0415 - an extra

        return RayCrew(job, settings.ray_address)
    return start_crew(job, settings.num_workers)
