"""Devices: what a block and a network cost there. Importing this imports neither torch nor a runtime.

`profile.profile` measures a table, `whole.measure_whole` exported files, `measure.interleave` anything.
"""

from pocketformer.devices.table import Check, CheckedNetwork, Entry, LatencyTable, Reference, space_blocks

__all__ = ["Check", "CheckedNetwork", "Entry", "LatencyTable", "Reference", "space_blocks"]
