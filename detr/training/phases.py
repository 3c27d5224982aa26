"""The phases of a training, and what each teaches: all at once, or as the paper does in two steps.

From scratch a detector needs features first, and masks need a detector: hence the first two.
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
    """Whether PQ says anything of what a phase teaches."""
    return TRAINS[phase][2]
