"""Differences between the work and the environment of two runs.

A value that only one run recorded (an older schema, a clone without git) shows neither difference nor equality. The
names of such values have a list of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from unfuse.records.schema import Manifest, SampleRecord
from unfuse.report.text import printable

_ENVIRONMENT: Final = (
    "device_name", "cpu", "cpu_cores", "cpu_affinity", "cpu_governor", "torch_threads", "cuda",
    "code_version", "packages", "python", "platform",
)  # fmt: skip
_PASSING: Final = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "utilization.gpu")
"""State of a GPU; it differs between any two runs."""
_AFTER_THE_SAMPLES: Final = ("noise_repeats", "balance_seconds")
"""Options that change no sample's time."""
_HASH_CHARACTERS: Final = 12

_FACTS: Final[Mapping[str, Callable[[SampleRecord], Any]]] = {
    "media": lambda r: r.media,
    "media's sha256": lambda r: r.media_sha256 and r.media_sha256[:_HASH_CHARACTERS],
    "question": lambda r: r.question,
    "frames": lambda r: r.num_frames,
    "frame size": lambda r: _size(r.frame_size),
    "pixels into the tower": lambda r: _size(r.pixels),
    "text tokens of the prompt": lambda r: r.text_tokens,
    "vision tokens of the prompt": lambda r: r.media_tokens,
    "reused prefix tokens": lambda r: r.reused_prefix_tokens,
    "output tokens": lambda r: r.output_tokens,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Differences:
    """Differences of work, or of environment."""

    values: Mapping[str, tuple[str, str]]
    """Values in A and in B, by name."""
    one_sided: tuple[str, ...] = ()
    """Names of values that only one run recorded."""


def work_differences(
    before: tuple[Manifest, Sequence[SampleRecord]], after: tuple[Manifest, Sequence[SampleRecord]]
) -> Differences:
    """Return the differences of work that make the times of two runs unequal.

    Args:
        before: A, with its measured records.
        after: B.
    """
    (one, a), (other, b) = before, after
    values = {name: (_text(x), _text(y)) for name, x, y in _of_whole_runs(one, other) if x != y}
    if len(a) != len(b):
        values["samples measured"] = (str(len(a)), str(len(b)))
    options = [name for name in dict.fromkeys([*one.config, *other.config]) if name not in _AFTER_THE_SAMPLES]
    one_sided = [f"option {name}" for name in options if (name in one.config) != (name in other.config)]
    by_id = {r.sample_id: r for r in b}
    pairs = [(r, by_id[r.sample_id]) for r in a if r.sample_id in by_id]
    for name, fact in _FACTS.items():
        in_a, in_b = ([v for r in each if (v := fact(r)) is not None] for each in (a, b))
        if not in_a or not in_b:
            one_sided += [name] if in_a or in_b else []
        elif pairs:
            values |= _of_pairs(name, [(fact(r), fact(s)) for r, s in pairs])
        elif _values(in_a) != _values(in_b):
            values[name] = (_values(in_a), _values(in_b))
    return Differences(values=values | _answers(pairs), one_sided=tuple(one_sided))


def _of_pairs(name: str, facts: Sequence[tuple[Any, Any]]) -> dict[str, tuple[str, str]]:
    """Return the difference of a fact over the common samples that both runs recorded it of."""
    unlike = [(x, y) for x, y in facts if None not in (x, y) and x != y]
    if not unlike:
        return {}
    xs, ys = zip(*unlike, strict=True)
    return {f"{name}, in {len(unlike)} of {len(facts)} common samples": (_values(xs), _values(ys))}


def _answers(pairs: Sequence[tuple[SampleRecord, SampleRecord]]) -> dict[str, tuple[str, str]]:
    """Return the common samples with different token ids."""
    changed = [r.sample_id for r, s in pairs if None not in (r.token_ids, s.token_ids) and r.token_ids != s.token_ids]
    if not changed:
        return {}
    return {f"answer, in {len(changed)} of {len(pairs)} common samples": ("one", f"another ({_values(changed)})")}


def environment_differences(before: Manifest, after: Manifest) -> Differences:
    """Return the differences of machine, packages and code."""
    one, other = (_environment(manifest) for manifest in (before, after))
    return Differences(
        values={n: (_text(one[n]), _text(other[n])) for n in one if n in other and one[n] != other[n]},
        one_sided=tuple(n for n in dict.fromkeys([*one, *other]) if (n in one) != (n in other)),
    )


def _of_whole_runs(one: Manifest, other: Manifest) -> Iterable[tuple[str, Any, Any]]:
    weights = [m.model.get("fingerprint") for m in (one, other)]
    if weights[0] != weights[1] or None in weights:
        # Names are paths of checkpoints; equal weights are one model at any path.
        yield "model", one.model.get("name"), other.model.get("name")
        yield "weights", str(weights[0])[:_HASH_CHARACTERS], str(weights[1])[:_HASH_CHARACTERS]
    for name in ("dtype", "engine"):
        yield name, one.model.get(name), other.model.get(name)
    for name in one.config:
        if name in other.config and name not in _AFTER_THE_SAMPLES:
            yield f"option {name}", one.config[name], other.config[name]


def _environment(manifest: Manifest) -> dict[str, Any]:
    found = {"device": manifest.model.get("device")}
    found |= {name: manifest.environment.get(name) for name in _ENVIRONMENT}
    return dict(_leaves("", found))


def _leaves(name: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [leaf for key, item in value.items() for leaf in _leaves(f"{name}.{key}" if name else str(key), item)]
    passing = value is None or any(name.endswith(f".state.{kind}") for kind in _PASSING)
    return [] if passing else [(name, value)]


def _values(values: Iterable[Any]) -> str:
    """Return one value, or the range or list of several."""
    seen = list(dict.fromkeys(values))
    if len(seen) > 1 and all(isinstance(value, int) for value in seen):
        return f"{min(seen)} to {max(seen)}"
    return ", ".join(map(_text, seen[:4])) + (", ..." if len(seen) > 4 else "")


def _size(shape: tuple[int, ...] | None) -> str | None:
    return None if shape is None else " x ".join(map(str, shape))


def _text(value: object) -> str:
    text = printable(str(value))
    return text if len(text) <= 80 else text[:77] + "..."
