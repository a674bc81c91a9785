"""Reading the images of a job, with progress and notes for the person."""

from pocketformer.progress import say, stage
from pocketformer.training.data import Data, open_data
from pocketformer.training.sources import find


def open_images(source: str, size: tuple[int, int], seed: int, bad_images: str, workers: int) -> Data:
    """`open_data` with a progress bar; says what is worth saying."""
    found = find(source)
    with stage("read the images", len(found)) as progress:
        data = open_data(
            found,
            size=size,
            seed=seed,
            bad_images=bad_images,
            workers=workers,
            progress=lambda done, total: progress.update(done),
        )
    for note in data.notes:
        say(f"note: {note}")
    return data
