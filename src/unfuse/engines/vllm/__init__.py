"""Engine ``vllm``: Stage 4 on vLLM (Kwon et al., SOSP 2023), inside this process.

``engine`` is the ``Engine``; ``continuous`` its batch of requests that come and go; ``requests`` steps vLLM and deals
out what it says; ``handover`` gives it the weights; ``building`` sets it up; ``watched`` sees the logits of a request.
"""
