"""Measure size and structure of the package: ``python -m tests.contract.figures [FOLDER]``.

FOLDER is ``src/unfuse`` of another checkout, to compare two versions by one script.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from pathlib import Path

LONGEST_FUNCTION = 60
MOST_PARAMETERS = 6
GIVEN_BY_NAME = {"Path", "StagedModel", "os.PathLike[str]", "torch.device"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def figures(source: Path) -> dict[str, int]:
    """Count what every module below a package's folder holds."""
    trees = parse(source)
    functions = [each for tree in trees.values() for each in functions_of(tree)]
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    return {
        "lines of Python": sum(len(path.read_text().splitlines()) for path in trees),
        "lines of CUDA": sum(len(path.read_text().splitlines()) for path in source.rglob("*.cu")),
        "modules": len(trees),
        "import circles": len(circles(imports(source, trees))),
        "functions over 60 lines": sum(length(each) > LONGEST_FUNCTION for each in functions),
        "functions over 6 parameters": sum(parameters(each) > MOST_PARAMETERS for each in functions),
        "public class names used twice": len(repeated_classes(trees)),
        "isinstance(x, str)": sum(is_string_test(node) for node in nodes),
        "results or a reason as a string": sum(is_string_or_result(node) for node in nodes),
        "attributes read for their side effect": sum(is_idle_read(node) for node in nodes),
    }


def parse(source: Path) -> dict[Path, ast.Module]:
    """Parse every module below a folder."""
    return {path: ast.parse(path.read_text()) for path in sorted(source.rglob("*.py"))}


def functions_of(tree: ast.Module) -> list[Function]:
    """Return functions and methods, nested ones too."""
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def repeated_classes(trees: dict[Path, ast.Module]) -> dict[str, list[Path]]:
    """Return the public class names that several modules define, with these modules."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(path)
    return {name: paths for name, paths in found.items() if len(paths) > 1}


def length(function: Function) -> int:
    """Count lines without the docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def parameters(function: Function) -> int:
    """Count parameters without ``self`` and ``cls``."""
    given = function.args
    names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def is_string_test(node: ast.AST) -> bool:
    """Return whether a node is ``isinstance(..., str)``."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "isinstance"
        and len(node.args) == 2
        and isinstance(node.args[1], ast.Name)
        and node.args[1].id == "str"
    )


def is_string_or_result(node: ast.AST) -> bool:
    """Return whether a function returns, or a variable holds, ``X | str``: a result or the reason for its absence.

    Paths and models may be given by name, and None is no result.
    """
    match node:
        case ast.FunctionDef(returns=annotation) | ast.AsyncFunctionDef(returns=annotation):
            pass
        case ast.AnnAssign(annotation=annotation):
            pass
        case _:
            return False
    members = set()
    waiting = [annotation]
    while waiting:
        match waiting.pop():
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                waiting += [left, right]
            case ast.expr() as member:
                members.add(ast.unparse(member))
    return "str" in members and not members & GIVEN_BY_NAME and len(members - {"str", "None"}) > 0


def is_idle_read(node: ast.AST) -> bool:
    """Return whether a node is ``_ = x.y``: a property read only for the error that it may raise."""
    match node:
        case ast.Assign(targets=[ast.Name(id="_")], value=ast.Attribute()):
            return True
    return False


def imports(source: Path, trees: dict[Path, ast.Module]) -> dict[str, set[str]]:
    """Return the modules that each module imports, also within functions and for types alone."""
    names = {path: name_of(source, path) for path in trees}
    modules = set(names.values())
    found: dict[str, set[str]] = defaultdict(set)
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                wanted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                wanted = [f"{node.module}.{alias.name}" for alias in node.names]
                wanted = [each if each in modules else node.module for each in wanted]
            else:
                continue
            found[names[path]].update(each for each in wanted if each in modules and each != names[path])
    return found


def name_of(source: Path, path: Path) -> str:
    """Return a module's name as it is imported."""
    parts = path.relative_to(source.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circles(found: dict[str, set[str]]) -> list[set[str]]:
    """Return groups of modules that import each other, directly or not (Tarjan, 1972)."""
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


def main(source: Path) -> None:
    """Print the figures, the class names used twice and the modules of each circle."""
    trees = parse(source)
    lines = [f"{number:7,} {name}" for name, number in figures(source).items()]
    lines += [f"class {name}: {', '.join(map(str, paths))}" for name, paths in repeated_classes(trees).items()]
    lines += [f"circle: {', '.join(sorted(group))}" for group in circles(imports(source, trees))]
    sys.stdout.write("\n".join([*lines, ""]))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "src" / "unfuse")
