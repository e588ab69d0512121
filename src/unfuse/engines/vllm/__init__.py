"""Engine ``vllm``: Stage 4 on vLLM (Kwon et al., SOSP 2023), inside this process.

``engine`` implements ``Engine``, and ``batch`` its continuous batch. ``client`` submits requests to vLLM and returns
their tokens; ``host_prompt`` copies prompts to the host, as vLLM needs them there. ``prefix_hash`` hashes prompts, so
that they share KV-cache blocks, and ``logits_recorder`` records the logits of a request. ``builder`` builds vLLM, and
``weights`` gives it the model's weights.
"""
