"""A search space of tiny networks, of which any stage of the work takes seconds. Shared by the tests of devices."""

TINY = {
    "name": "tiny",
    "design": {
        "resolution": 16,
        "stem_strides": [2, 1],
        "stage_strides": [2, 1, 2],
        "heads": 2,
        "key_dim": 4,
        "value_dim": 4,
        "downsampling_heads": 2,
        "downsampling_key_dim": 4,
        "downsampling_value_dim": 4,
    },
    "expansions": [1, 2],
    "stages": [
        {"depth": 1, "widths": [8]},
        {"depth": 1, "widths": [8, 16]},
        {"depth": 2, "widths": [16], "attention": True},
        {"depth": 1, "widths": [16], "attention": True},
    ],
}
