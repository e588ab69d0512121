"""The seed's 3-stage benchmark (load, preprocess, fused generate), over ``unfuse bench --protocol fused``.

python feasible/benchmark_inference/benchmark_inference_3stages.py --dataset_dir D --max_samples N --device cuda
"""

from __future__ import annotations

import sys

from unfuse.cli.seed import three_stages

if __name__ == "__main__":
    sys.exit(three_stages())
