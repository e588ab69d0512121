"""How large and how tangled the package is: ``python -m tests.contract.figures [FOLDER]``.

FOLDER holds another checkout's ``src/unfuse``, to compare two versions by one script.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter, defaultdict
from pathlib import Path

LONGEST_FUNCTION = 60
MOST_PARAMETERS = 6
Function = ast.FunctionDef | ast.AsyncFunctionDef


def figures(source: Path) -> dict[str, int]:
    """Of all modules below a package's folder."""
    trees = {path: ast.parse(path.read_text()) for path in sorted(source.rglob("*.py"))}
    functions = [(path, each) for path, tree in trees.items() for each in ast.walk(tree) if isinstance(each, Function)]
    classes = Counter(each.name for tree in trees.values() for each in tree.body if isinstance(each, ast.ClassDef))
    return {
        "lines of Python": sum(len(path.read_text().splitlines()) for path in trees),
        "lines of CUDA": sum(len(path.read_text().splitlines()) for path in source.rglob("*.cu")),
        "modules": len(trees),
        "import circles": len(circles(imports(source, trees))),
        "functions over 60 lines": sum(length(each) > LONGEST_FUNCTION for _, each in functions),
        "functions over 6 parameters": sum(parameters(each) > MOST_PARAMETERS for _, each in functions),
        "public class names used twice": sum(n > 1 and not name.startswith("_") for name, n in classes.items()),
        "isinstance(x, str)": sum(is_string_test(each) for tree in trees.values() for each in ast.walk(tree)),
    }


def length(function: Function) -> int:
    """Lines without the docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def parameters(function: Function) -> int:
    """Without ``self`` and ``cls``."""
    given = function.args
    names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def is_string_test(node: ast.AST) -> bool:
    """``isinstance(..., str)``."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "isinstance"
        and len(node.args) == 2
        and isinstance(node.args[1], ast.Name)
        and node.args[1].id == "str"
    )


def imports(source: Path, trees: dict[Path, ast.Module]) -> dict[str, set[str]]:
    """Modules that each module imports, also within functions and for types alone."""
    names = {path: name_of(source, path) for path in trees}
    known = set(names.values())
    found: dict[str, set[str]] = defaultdict(set)
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                wanted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                wanted = [f"{node.module}.{alias.name}" for alias in node.names]
                wanted = [each if each in known else node.module for each in wanted]
            else:
                continue
            found[names[path]].update(each for each in wanted if each in known and each != names[path])
    return found


def name_of(source: Path, path: Path) -> str:
    """As it is imported."""
    parts = path.relative_to(source.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circles(found: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules that import each other, directly or not (Tarjan, 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[set[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in sorted(found.get(name, ())):
            if other not in order:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], order[other])
        if low[name] == order[name]:
            at = stack.index(name)
            if len(stack) - at > 1:
                groups.append(set(stack[at:]))
            del stack[at:]

    for name in sorted(found):
        if name not in order:
            visit(name)
    return groups


def main(place: Path) -> None:
    """Print the figures, and the modules of each circle."""
    said = [f"{number:7,} {what}" for what, number in figures(place).items()]
    trees = {path: ast.parse(path.read_text()) for path in sorted(place.rglob("*.py"))}
    said += [f"circle: {', '.join(sorted(group))}" for group in circles(imports(place, trees))]
    sys.stdout.write("\n".join([*said, ""]))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "src" / "unfuse")
