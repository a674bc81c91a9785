"""What the stages of `design` share once the images are read."""

from dataclasses import dataclass
from pathlib import Path

from pocketformer.pipelines.settings import DesignSettings
from pocketformer.runs import Run
from pocketformer.training.data import Data


@dataclass(frozen=True)
class Chain:
    settings: DesignSettings
    run: Run
    data: Data

    @property
    def path(self) -> Path:
        return self.run.path
