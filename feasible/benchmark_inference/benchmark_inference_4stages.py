"""The seed's 4-stage benchmark, over ``unfuse bench``.

python feasible/benchmark_inference/benchmark_inference_4stages.py --dataset_dir D --max_samples N --device cuda
"""

from __future__ import annotations

import sys

from unfuse.cli.seed import four_stages

if __name__ == "__main__":
    sys.exit(four_stages())
