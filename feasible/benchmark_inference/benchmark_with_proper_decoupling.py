"""The seed's benchmark of all models on the same samples, over ``unfuse bench MODEL MODEL ... --protocol all``.

python feasible/benchmark_inference/benchmark_with_proper_decoupling.py --dataset_dir D --max_samples N --device cuda
"""

from __future__ import annotations

import sys

from unfuse.cli.seed import proper_decoupling

if __name__ == "__main__":
    sys.exit(proper_decoupling())
