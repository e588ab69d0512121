"""The script that measures the package, on small packages with the defects that it counts."""

from __future__ import annotations

import ast

from tests.contract.figures import circles, figures, imports


def written(folder, **texts):
    source = folder / "package"
    for name, text in {"__init__": "", **texts}.items():
        path = source / f"{name.replace('__', '/') if name != '__init__' else name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return source


def test_modules_that_import_each_other(tmp_path):
    late = "if TYPE_CHECKING:\n    from package.a import A\ndef f():\n    import package.c\n"
    source = written(tmp_path, a="from package.b import f\n", b=late, c="import package.b\n", d="import package.a\n")
    trees = {path: ast.parse(path.read_text()) for path in source.rglob("*.py")}
    assert circles(imports(source, trees)) == [{"package.a", "package.b", "package.c"}]


def test_long_functions_and_their_parameters(tmp_path):
    body = "".join(f"    x{i} = {i}\n" for i in range(60))
    text = f'class A:\n    pass\ndef long(self, a, b, c, d, e, f):\n    """Says\n\n    much."""\n{body}'
    wide = "class A:\n    pass\ndef wide(a, b, c, *, d, e, f, g):\n    return isinstance(a, str)\n"
    found = figures(written(tmp_path, a=text, b=wide))
    assert (found["functions over 60 lines"], found["functions over 6 parameters"]) == (1, 1)
    assert (found["public class names used twice"], found["isinstance(x, str)"], found["modules"]) == (1, 1, 3)


def test_results_and_reads_that_hide_a_refusal(tmp_path):
    returns = "def a() -> int | str | None: ...\ndef b() -> str | None: ...\nc: str | Path\nd: int | str = 3\n"
    reads = "def d(x):\n    _ = x.y\n    _ = x.y()\n    z = x.y\n    return z\n"
    found = figures(written(tmp_path, a=returns, b=reads))
    assert found["results or a reason as a string"] == 2
    assert found["attributes read for their side effect"] == 1
