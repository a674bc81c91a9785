"""The blocks around the stages, of both families: stems, convolutional downsampling, head."""

from dataclasses import dataclass

from pocketformer.architecture import layers
from pocketformer.architecture.block import Block, activated, block_key, conv_norm, grid_text, norm_text, strided
from pocketformer.architecture.layers import Cost, Grid, positions


@dataclass(frozen=True)
class Stem(Block):
    """Two 3x3 convolutions with norm and activation (V2 eq. 3); the first has half the width."""

    in_chans: int
    width: int
    grid: Grid  # of the input image
    strides: tuple[int, int]
    activation: str
    norm: str = "bn"
    kind = "stem"

    @property
    def mid_grid(self) -> Grid:
        return strided(self.grid, self.strides[0])

    @property
    def out_grid(self) -> Grid:
        return strided(self.mid_grid, self.strides[1])

    @property
    def mid_width(self) -> int:
        return self.width // 2

    def costs(self) -> tuple[Cost, ...]:
        first = conv_norm(self.norm, self.in_chans, self.mid_width, 3, self.mid_grid, act=self.activation)
        return first + conv_norm(self.norm, self.mid_width, self.width, 3, self.out_grid, act=self.activation)

    def activations(self) -> int:
        mid, out = self.mid_width * positions(self.mid_grid), self.width * positions(self.out_grid)
        return max(
            self.in_chans * positions(self.grid) + mid,
            activated(self.activation, mid),
            mid + out,
            activated(self.activation, out),
        )

    def key(self) -> str:
        strides = f"s{self.strides[0]}{self.strides[1]}"
        widths = f"{self.in_chans}-{self.width}"
        return block_key("stem", widths, strides, grid_text(self.grid), self.activation, norm_text(self.norm))


@dataclass(frozen=True)
class PatchStem(Block):
    """Large-kernel patch embedding (V1 Table 3, variant V5): one 7x7 convolution of stride 4, and its norm."""

    in_chans: int
    width: int
    grid: Grid  # of the input image
    stride: int
    norm: str = "bn"
    kind = "stem"
    kernel = 7

    @property
    def out_grid(self) -> Grid:
        return strided(self.grid, self.stride)

    def costs(self) -> tuple[Cost, ...]:
        return conv_norm(self.norm, self.in_chans, self.width, self.kernel, self.out_grid)

    def activations(self) -> int:
        return self.in_chans * positions(self.grid) + self.width * positions(self.out_grid)

    def key(self) -> str:
        widths = f"{self.in_chans}-{self.width}"
        return block_key("patch-stem", widths, f"s{self.stride}", grid_text(self.grid), norm_text(self.norm))


@dataclass(frozen=True)
class ConvDownsampling(Block):
    """Strided 3x3 convolution and norm between two stages."""

    in_width: int
    width: int
    grid: Grid  # of the input
    stride: int
    norm: str = "bn"
    kind = "downsampling"

    @property
    def out_grid(self) -> Grid:
        return strided(self.grid, self.stride)

    def costs(self) -> tuple[Cost, ...]:
        return conv_norm(self.norm, self.in_width, self.width, 3, self.out_grid)

    def activations(self) -> int:
        return self.in_width * positions(self.grid) + self.width * positions(self.out_grid)

    def key(self) -> str:
        where = f"{grid_text(self.grid)}/{self.stride}"
        return block_key("downsampling", f"{self.in_width}-{self.width}", where, norm_text(self.norm))


@dataclass(frozen=True)
class Head(Block):
    """Final norm, global mean and classifier; with `distilled` two classifiers (averaged when fused)."""

    width: int
    grid: Grid
    num_classes: int
    distilled: bool
    norm: str = "bn"  # ln: the last stage ends in tokens
    kind = "head"

    @property
    def out_grid(self) -> Grid:
        return (1, 1)

    def costs(self) -> tuple[Cost, ...]:
        heads = 2 if self.distilled else 1
        norm = layers.norm(self.norm, self.width, self.width * positions(self.grid))
        return (norm, *(heads * (layers.linear(self.width, self.num_classes),)))

    def activations(self) -> int:
        return self.width + max(self.width * positions(self.grid), self.num_classes)

    def key(self) -> str:
        """The fused graph has one classifier whether the network was distilled or not."""
        return block_key(
            "head", str(self.width), grid_text(self.grid), f"classes{self.num_classes}", norm_text(self.norm)
        )
