"""The phases of a training, and the parts of the model that each phase trains.

"joint" trains all parts at once; "boxes", then "masks", are the paper's two steps (section 4.4).
"backbone", then "detector", are for a small model from random weights: features come first.
"""

from __future__ import annotations

from typing import Final, Literal

Phase = Literal["backbone", "detector", "boxes", "masks", "joint"]
TRAINS: Final = {  # features, detector, masks
    "backbone": (True, False, False),
    "detector": (False, True, False),
    "boxes": (True, True, False),
    "masks": (False, False, True),
    "joint": (True, True, True),
}


def learns_masks(phase: Phase) -> bool:
    """Whether a phase trains the mask head, so that PQ can change."""
    return TRAINS[phase][2]
