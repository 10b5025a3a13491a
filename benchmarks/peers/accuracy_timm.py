"""timm's `train.py` with our network, which it cannot know by itself.

python -m benchmarks.peers.accuracy_timm <checkout of pytorch-image-models> [argument of train.py ...]
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import benchmarks.peers.accuracy_network  # noqa: F401  registers the network


def main() -> None:
    """Run the script of the checkout with the timm that is installed."""
    checkout, *arguments = sys.argv[1:]
    script = Path(checkout) / "train.py"
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
