"""No code of a checkpoint runs, for any file that names the code and any text on stdin."""

from __future__ import annotations

import ast
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from transformers import GenerationConfig as Generation

from tests.adapters import test_processors
from unfuse.errors import CheckpointError, MissingPackageError, PromptError
from unfuse.loading import load, open_preprocessor
from unfuse.models.eventgpt import EventChatModel, EventGPTProcessor
from unfuse.models.pretrained import from_pretrained
from unfuse.samples.demo import demo_checkpoint

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "config.json": ("AutoConfig", "AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoModel"),
    "tokenizer_config.json": ("AutoTokenizer", "AutoProcessor"),
    "processor_config.json": ("AutoProcessor", "AutoImageProcessor"),
    "preprocessor_config.json": ("AutoImageProcessor", "AutoProcessor", "AutoFeatureExtractor"),
    "image_processor_config.json": ("AutoImageProcessor",),
    "feature_extractor_config.json": ("AutoFeatureExtractor", "AutoProcessor"),
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
def test_a_checkpoint_of_another_family(bait, tmp_path_factory, name):
    """LLaVA's classes are transformers' own; what a file wants to add to them is not run."""
    llava = test_processors.folder(tmp_path_factory.mktemp("base") / "llava", "llava", "CLIPImageProcessor")
    folder, mark = bait(llava)
    ask_for_code(folder / name, FILES[name])
    with load(str(folder), device="cpu", dtype="float32") as model:
        assert model.family == "llava"
    assert open_preprocessor(str(folder), "float32") is not None
    assert not mark.exists()


def test_a_processor_that_only_its_code_knows(bait, tmp_path_factory):
    """A family whose processor is ``AutoProcessor``'s to find: the file that asks is named."""
    folder, mark = bait(
        test_processors.folder(tmp_path_factory.mktemp("base") / "llava", "llava", "StrangeImageProcessor")
    )
    names = ("AutoImageProcessor", "AutoProcessor")
    ask_for_code(folder / "preprocessor_config.json", names, processor_class="StrangeProcessor")
    with pytest.raises(CheckpointError, match=r"preprocessor_config.json: found code of the checkpoint's own"):
        load(str(folder), device="cpu", dtype="float32")
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


class Failing:
    """A class of transformers whose loading fails."""

    error: BaseException = ValueError()

    @classmethod
    def from_pretrained(cls, *_, **__):
        raise cls.error


@pytest.mark.parametrize(
    "error",
    [
        OSError("no file"), ValueError("a\nb"), KeyError("x"), TypeError(), AttributeError("x"), RuntimeError("size"),
        Exception("untagged enum"), MemoryError(), RecursionError(), ZeroDivisionError(), AssertionError(),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_every_error_of_loading_is_one_line(tmp_path, error):
    Failing.error = error
    with pytest.raises(CheckpointError, match="found no loadable model") as caught:
        from_pretrained(Failing, tmp_path)
    assert "\n" not in str(caught.value)


def test_errors_that_are_no_fault_of_the_checkpoint(tmp_path):
    for error in (PromptError("x"), torch.OutOfMemoryError("device"), KeyboardInterrupt()):
        Failing.error = error
        with pytest.raises(type(error)):
            from_pretrained(Failing, tmp_path)


@pytest.mark.parametrize(
    ("message", "package"),
    [
        ("Using `bitsandbytes` 4-bit requires bitsandbytes: `pip install -U bitsandbytes>=0.46.1`", "bitsandbytes"),
        ("Loading AWQ needs gptqmodel. Please install it with `pip install gptqmodel`", "gptqmodel"),
        ("requires the Torchvision library but it was not found", "torchvision"),
    ],
)
def test_a_missing_package_is_named(tmp_path, message, package):
    Failing.error = ImportError(message)
    with pytest.raises(MissingPackageError, match=f"found no {package}, expected this package.* {package}$"):
        from_pretrained(Failing, tmp_path)
    Failing.error = ImportError("cannot import name x")
    with pytest.raises(MissingPackageError, match="a package that cannot be imported"):
        from_pretrained(Failing, tmp_path)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="generation_config"):
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
