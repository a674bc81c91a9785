"""Reading the images of a job, with progress and notes for the person."""

from pocketformer.progress import say, stage
from pocketformer.training.data import Data, open_data


def open_images(source: str, size: tuple[int, int], seed: int, bad_images: str, workers: int) -> Data:
    """`open_data` with a progress bar; says what is worth saying."""
    with stage("read the images") as progress:
        data = open_data(
            source,
            size=size,
            seed=seed,
            bad_images=bad_images,
            workers=workers,
            progress=lambda done, total: progress.update(done, total=total),
        )
    for note in data.notes:
        say(f"note: {note}")
    return data
