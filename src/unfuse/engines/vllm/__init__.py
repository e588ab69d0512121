"""Engine ``vllm``: Stage 4 on vLLM (Kwon et al., SOSP 2023), inside this process.

``engine`` is the ``Engine``, ``continuous`` its batch of requests that come and go. ``requests`` steps vLLM and deals
out what it says, ``prefixes`` says what may be taken over between prompts, ``watched`` sees the logits of a request.
``building`` sets vLLM up, and ``handover`` gives it the weights.
"""
