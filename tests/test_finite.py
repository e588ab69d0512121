import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from unfuse.errors import FeaturesError, NonFiniteError
from unfuse.features import Features
from unfuse.finite import FiniteFlag, is_finite, non_finite_counts
from unfuse.stages import Provenance

BAD = (float("nan"), float("inf"), float("-inf"))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def features(tensor, layers=()):
    provenance = Provenance(
        model_fingerprint="m", family="f", media_sha256="s", num_frames=1,
        dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape),
    )  # fmt: skip
    return Features(tensor, provenance, layers)


@given(
    st.integers(1, 70), st.sampled_from(DTYPES), st.dictionaries(st.integers(0, 69), st.sampled_from(BAD), max_size=3)
)
@examples(60)
def test_a_row_is_finite_if_all_its_values_are(width, dtype, bad):
    """Also the largest numbers of a dtype are finite."""
    rows = torch.randn(3, width).to(dtype)
    rows[1, 0] = torch.finfo(dtype).max
    for place, value in bad.items():
        if place < width:
            rows[2, place] = value
    assert is_finite(rows).tolist() == torch.isfinite(rows).all(-1).tolist()
    assert bool(FiniteFlag([rows, rows[:1]])) is bool(torch.isfinite(rows).all())


def test_no_values_are_finite():
    assert FiniteFlag([])
    assert FiniteFlag([torch.empty(0, 8)])
    features(torch.empty(0, 8)).require_finite()


def test_counts_are_named():
    values = torch.zeros(1000)
    values[3:5], values[7] = float("nan"), float("-inf")
    assert non_finite_counts([values, values[:10]]) == "NaN in 4 and infinity in 2 of 1,010 values"


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("layer", [False, True], ids=["rows", "deeper rows"])
def test_features_that_are_not_finite_are_neither_used_nor_stored(value, layer, tmp_path):
    tensor, deeper = torch.zeros(4, 8), torch.zeros(4, 8)
    (deeper if layer else tensor)[1, 2] = value
    made = features(tensor, (deeper,))
    for refused in (made.require_finite, lambda: made.save(tmp_path / "file"), made.clone().require_finite):
        with pytest.raises(NonFiniteError, match="^encode: features are not finite: found .* 1 of 64 values") as caught:
            refused()
        assert caught.value.stage == "encode"
    assert not list(tmp_path.iterdir())


def test_a_change_in_place_is_seen():
    made = features(torch.zeros(4, 8))
    made.require_finite()
    made.tensor[0, 0] = float("nan")
    with pytest.raises(NonFiniteError):
        made.known_as("a digest").require_finite()
    made.tensor[0, 0] = 0.0
    made.require_finite()


def test_tensors_of_inference_mode_are_looked_at_again():
    with torch.inference_mode():
        made = features(torch.zeros(4, 8))
        made.require_finite()
        made.tensor[0, 0] = float("nan")
    with pytest.raises(NonFiniteError):
        made.require_finite()


def test_a_file_with_values_that_are_not_finite_is_refused_by_the_prefill_only(tmp_path):
    """Reading a file does not look at its values; a store has only finite ones, and an edited file has no digest."""
    made = features(torch.zeros(4, 8))
    made.save(tmp_path / "file")
    data = bytearray((tmp_path / "file").read_bytes())
    data[-4:] = np.float32("nan").tobytes()
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(FeaturesError, match="digest"):
        Features.load(tmp_path / "file")
