"""No code of a checkpoint runs, for any file that names the code and any text on stdin."""

from __future__ import annotations

import ast
import io
import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from transformers import GenerationConfig as Generation

from unfuse.errors import CheckpointError
from unfuse.loading import load
from unfuse.models.eventgpt import EventChatModel, EventGPTProcessor
from unfuse.models.pretrained import from_pretrained
from unfuse.samples.demo import demo_checkpoint

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "config.json": ("AutoConfig", "AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoModel"),
    "tokenizer_config.json": ("AutoTokenizer", "AutoProcessor"),
    "processor_config.json": ("AutoProcessor", "AutoImageProcessor"),
    "preprocessor_config.json": ("AutoImageProcessor", "AutoProcessor", "AutoFeatureExtractor"),
    "video_preprocessor_config.json": ("AutoVideoProcessor",),
    "generation_config.json": ("AutoModel", "custom_generate"),
}


@pytest.fixture(autouse=True)
def stdin_that_says_yes(monkeypatch):
    """As ``echo y |`` does, many times."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 100))


@pytest.fixture
def bait(tmp_path):
    """Make a folder with Python files that leave a mark when they run; return the folder and the mark's path."""

    def made(source: Path | None = None) -> tuple[Path, Path]:
        folder, mark = tmp_path / "bait", tmp_path / "ran"
        if source is None:
            folder.mkdir()
        else:
            shutil.copytree(source.parent, tmp_path, dirs_exist_ok=True)
            (tmp_path / source.name).rename(folder)
        code = f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
        for name in ("code.py", "generate.py", "__init__.py", "sitecustomize.py", "conftest.py"):
            (folder / name).write_text(code)
        (folder / "custom_generate").mkdir()
        (folder / "custom_generate" / "generate.py").write_text(code + "def generate(model, **kwargs): pass\n")
        return folder, mark

    return made


def ask_for_code(path: Path, names: tuple[str, ...], **fields: object) -> None:
    settings = json.loads(path.read_text()) if path.is_file() else {}
    mapped = {name: ["code.Slow", "code.Fast"] if name == "AutoTokenizer" else f"code.{name}" for name in names}
    path.write_text(json.dumps(settings | {"auto_map": mapped} | fields))


@pytest.mark.parametrize("name", FILES)
def test_an_auto_map_beside_a_known_class_is_not_needed(bait, name):
    """EventGPT's own classes load the folder; its other files stay unread."""
    folder, mark = bait(demo_checkpoint())
    ask_for_code(folder / name, FILES[name])
    with load(str(folder), device="cpu") as model:
        assert model.adapter is not None
    assert from_pretrained(EventGPTProcessor, folder) is not None
    assert not mark.exists()


@pytest.mark.parametrize("name", FILES)
def test_nobody_can_allow_it(bait, name):
    """``trust_remote_code=True``, passed out of habit, changes nothing in the classes of this project."""
    folder, mark = bait(demo_checkpoint())
    ask_for_code(folder / name, FILES[name])
    EventGPTProcessor.from_pretrained(folder, trust_remote_code=True)
    EventChatModel.from_pretrained(folder, trust_remote_code=True)
    from_pretrained(AutoTokenizer, folder, trust_remote_code=True)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "kind", "fields"),
    [
        ("config.json", AutoConfig, {"model_type": "strange"}),
        ("config.json", AutoModelForImageTextToText, {"model_type": "strange"}),
        ("tokenizer_config.json", AutoTokenizer, {"tokenizer_class": "StrangeTokenizer"}),
        ("processor_config.json", AutoProcessor, {"processor_class": "StrangeProcessor"}),
        ("preprocessor_config.json", AutoProcessor, {"processor_class": "StrangeProcessor"}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_code_that_would_be_needed_is_refused_by_the_name_of_the_file(bait, name, kind, fields):
    folder, mark = bait()
    ask_for_code(folder / name, FILES[name], **fields)
    with pytest.raises(CheckpointError) as caught:
        from_pretrained(kind, folder)
    message = str(caught.value)
    assert message.startswith(f"{folder / name}: found code of the checkpoint's own (auto_map ")
    assert "code." in message
    assert "never run" in message
    assert "\n" not in message
    assert not mark.exists()


@pytest.mark.parametrize("name", ["tokenizer_config.json", "config.json"])
def test_a_whole_checkpoint_that_needs_its_code(bait, name):
    """The published layout with a tokenizer or a model that only its own code knows."""
    folder, mark = bait(demo_checkpoint())
    strange = {"tokenizer_class": "StrangeTokenizer"} if name.startswith("token") else {"model_type": "strange"}
    if name == "config.json":
        strange["vision_config"] = {}
    ask_for_code(folder / name, FILES[name], **strange)
    with pytest.raises(CheckpointError, match=r"code of the checkpoint's own") as caught:
        load(str(folder), device="cpu")
    assert str(folder / name) in str(caught.value)
    with pytest.raises(CheckpointError):
        EventGPTProcessor.from_pretrained(folder)
    assert not mark.exists()


@pytest.mark.parametrize("where", ["code--code.Config", "someone/else--code.Config"])
def test_code_of_another_repository(bait, where):
    folder, mark = bait()
    (folder / "config.json").write_text(json.dumps({"model_type": "strange", "auto_map": {"AutoConfig": where}}))
    with pytest.raises(CheckpointError, match="config.json: found code of the checkpoint's own"):
        from_pretrained(AutoConfig, folder)
    assert not mark.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
@pytest.mark.parametrize("inside", [None, "text_config", "vision_config"])
def test_a_kernel_on_the_hub_is_code_too(bait, key, inside):
    folder, _ = bait(demo_checkpoint())
    config = json.loads((folder / "config.json").read_text())
    (config if inside is None else config.setdefault(inside, {}))[key] = "someone/kernel:run"
    (folder / "config.json").write_text(json.dumps(config))
    for attempt in (lambda: load(str(folder), device="cpu"), lambda: EventChatModel.from_pretrained(folder)):
        with pytest.raises(CheckpointError) as caught:
            attempt()
        assert f"{folder / 'config.json'}: found {key} 'someone/kernel:run'" in str(caught.value)


def test_a_kernel_for_one_part_of_the_model(bait):
    folder, _ = bait(demo_checkpoint())
    config = json.loads((folder / "config.json").read_text())
    config["attn_implementation"] = {"": "sdpa", "vision_config": "someone/kernel"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="someone/kernel.*code on the hub"):
        load(str(folder), device="cpu")


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(OSError, match="generation_config"):
        from_pretrained(Generation, tmp_path)


def test_every_call_refuses_remote_code():
    """A new ``X.from_pretrained(...)`` goes through the one function, or says False itself."""
    wrong, through = [], 0
    for part in ("src", "model", "feasible", "benchmarks", "training"):
        for path in (ROOT / part).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Call):
                    continue
                if isinstance(node.func, ast.Name) and node.func.id == "from_pretrained":
                    through += 1
                elif isinstance(node.func, ast.Attribute) and node.func.attr in LOADING:
                    if path.name == "pretrained.py" or _is_super_of_the_strict_loader(path, node):
                        continue
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not wrong
    assert through >= 9, "the search finds what there is"


LOADING = {"from_pretrained", "get_class_from_dynamic_module", "get_config_dict", "load_custom_generate", "pipeline"}


def _is_super_of_the_strict_loader(path: Path, node: ast.Call) -> bool:
    return path.name == "checkpoint.py" and ast.unparse(node.func) == "super().from_pretrained"
