"""What the page of a report shows: measurements, and pictures of weights; each network is opened once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cnncompress.errors import CompressError
from cnncompress.latency.setting import TimingSetting
from cnncompress.pipeline.asked import ImagesAsked, NetworkAsked
from cnncompress.pipeline.measure import check_measures, measure_again
from cnncompress.pipeline.opened import open_run
from cnncompress.pipeline.original import original_network
from cnncompress.pipeline.pictures import pictures_of
from cnncompress.reporting import Report, merge
from cnncompress.reporting.pictures import Pictures
from cnncompress.reporting.stored import stored_report


def report_with_pictures(
    runs: Sequence[Path],
    images: ImagesAsked,
    timings: Sequence[TimingSetting],
    trust_code: bool = False,
    examples: int = 0,
) -> tuple[Report, dict[str, Pictures]]:
    """As `measure.report_on`, with the pictures of each run by its path.

    The pictures of a run that cannot be built say why they are missing, where nothing is measured of it.
    """
    check_measures(images, timings)
    measuring = images.spec is not None or bool(timings)
    reports, pictures = {}, {}
    for path in runs:
        report = reports[str(path)] = stored_report(path)
        try:
            opened = open_run(path, NetworkAsked(trust_code=trust_code))
        except CompressError as error:
            if measuring:
                raise
            pictures[str(path)] = Pictures(missing=f"no spectra and no filters are shown: {error}")
            continue
        original = original_network(opened)
        if measuring:
            measure_again(report, opened, original, images, timings, examples)
        pictures[str(path)] = pictures_of(opened, original)
    return merge(reports), pictures
