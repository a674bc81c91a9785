"""Reading the images of a job, with progress and notes for the person."""

from pocketformer import ranks
from pocketformer.progress import say, stage
from pocketformer.training.data import Data, open_data, streams
from pocketformer.training.sources import find


def open_images(
    source: str,
    size: tuple[int, int],
    seed: int,
    bad_images: str,
    workers: int,
    stream: bool | None = None,
    as_they_are: bool = False,
) -> Data:
    """`open_data` with a progress bar; says what is worth saying.

    `stream`: None: streamed where the images are too many for memory, or, with `as_they_are`, wherever they can be
    (RandAugment is for images of their own size, not for stored ones). Of several processes the first looks at all
    images of a stream before the work begins.
    """
    found, check = find(source), ranks.first()
    if as_they_are and stream is None and found.load is not None:
        stream = True
    streamed = streams(found, size, stream)
    options = {"size": size, "seed": seed, "bad_images": bad_images, "workers": workers, "stream": stream}
    if streamed and (bad_images == "skip" or not check):
        data = open_data(found, **options, check=check)
    else:
        with stage("check the images" if streamed else "read the images", len(found)) as progress:
            data = open_data(found, **options, check=check, progress=lambda done, total: progress.update(done))
    for note in data.notes:
        say(f"note: {note}")
    return data


def say_unreadable(data: Data) -> None:
    """Tells of the images that could not be read since they were opened."""
    if note := data.late_note():
        say(f"note: {note}")
