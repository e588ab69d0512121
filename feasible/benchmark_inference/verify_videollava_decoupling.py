"""The seed's check of Video-LLaVA and LLaVA-1.5, over ``unfuse verify``.

python feasible/benchmark_inference/verify_videollava_decoupling.py --model_name llava-hf/llava-1.5-7b-hf --device cuda
"""

from __future__ import annotations

import sys

from unfuse.cli.seed import verify_videollava

if __name__ == "__main__":
    sys.exit(verify_videollava())
