"""Engine ``graphed``: Stage 4 of a LLaMA as CUDA graphs over Triton and CUDA kernels.

- ``engine`` implements ``Engine``: one answer at a time through ``decoding``, many through ``batch``.
- ``batch`` is the scheduler of continuous batching. It admits requests to ``prefill``, submits decode steps, and
  returns tokens. When an answer ends, ``GraphedBatch._finish`` releases its KV cache; ``slots`` assigns slots to the
  remaining requests before the next step.
- ``prefix_cache`` allocates KV caches (``kv_cache``) and finds a cache with a prefix that a question can reuse.
- ``model_runner`` launches the kernels of one pass over the layers: a decode step or an extend pass. ``llama`` finds
  the weights, ``gemm`` runs matrix products, ``megakernel`` is a decode step of one sequence as one kernel.
- ``cuda_graphs`` captures passes, and ``workspace`` holds their memory. ``autotune`` times kernel configs;
  ``tuned_configs`` lists the candidates.
- ``vision`` runs Stage 3 as graphs, with the kernels of ``tower_layers``.
"""
