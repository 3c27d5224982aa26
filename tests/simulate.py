"""Many interleavings of the protocol (tests/simulation), or one seed with every request.

python -m tests.simulate --seeds 2000
python -m tests.simulate --first 1234 --seeds 1
"""

from __future__ import annotations

import argparse
import sys

from tests.simulation.interleavings import interleave


def main() -> None:
    parser = argparse.ArgumentParser(description="Many interleavings of the protocol, or one.")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1_000, help="how many; one is told in full")
    asked = parser.parse_args()
    broken = 0
    for seed in range(asked.first, asked.first + asked.seeds):
        outcome = interleave(seed)
        if asked.seeds == 1:
            print("\n".join([*outcome.log, *outcome.drivers]))
        if outcome.broken:
            broken += 1
            print(outcome, flush=True)
    print(f"{asked.seeds} interleavings, {broken} broken")
    sys.exit(broken > 0)


if __name__ == "__main__":
    main()
