"""Adapters of model families: everything that depends on the family.

- ``base`` has the protocols ``Adapter`` (stages 1 to 3 of a loaded model), ``Preprocessor`` (stages 1 and 2, without
  weights) and ``FamilyLoader`` (builds both).
- Any Hugging Face model: ``hf``, ``hf_preprocessor`` and ``hf_loading``. Its forward is split at the points of
  ``split_point``; ``split_check`` tests whether that is possible, ``structure`` finds its modules, and ``feature_rows``
  converts its features. ``processors`` make pixels and prompts, and ``clip_loading`` opens
  those of LLaVA.
- Families that differ from it: ``llava`` and ``video_llava``.
- EventGPT: ``eventgpt``, ``eventgpt_preprocessor`` and ``eventgpt_loading``.
- Shared by all: ``transformers_adapter`` (base class), ``media`` (stage 1), ``pixels``, ``resample`` (CLIP's pixels),
  ``fused_generate``, ``detokenizer`` and ``random_weights``.

``docs/adding-a-model.md`` explains how to add a family.
"""
