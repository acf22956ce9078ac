"""DESIGN's arrows and habits, read from the source: who imports whom, where torch and mlx live, how long files are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import izwi_lab

ROOT = Path(izwi_lab.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MAX_LINES = 400
FRAMEWORKS = {"torch": "torch", "torchaudio": "torch", "mlx": "mlx", "mlx_lm": "mlx"}

# part -> the parts it may import; modules directly in izwi_lab (errors, results, audio, settings) are for everybody
BELOW_RUNTIME = {"catalog", "artifacts", "backends", "families", "codecs"}
ARROWS = {
    "catalog": set(),
    "artifacts": {"catalog"},
    "backends": {"catalog", "artifacts.tensors"},
    "families": {"catalog", "artifacts", "backends", "codecs"},
    "codecs": {"catalog", "artifacts", "backends", "families.shared"},
    "runtime": BELOW_RUNTIME | {"engine"},
    "engine": {"catalog", "families", "backends.memory"},
    "bench": BELOW_RUNTIME | {"runtime", "engine"},
    "server": BELOW_RUNTIME | {"runtime", "engine"},
    "lab": BELOW_RUNTIME | {"runtime", "engine", "bench"},
    "cli": BELOW_RUNTIME | {"runtime", "engine", "bench", "server"},
}
# Both backends swap a quantised net's linear layers for ones that hold codes; those modules come as a shared pair.
EXCEPTIONS = {
    ("backends/torch_backend.py", "families.shared.nets.quant.torch_net"),
    ("backends/mlx_backend.py", "families.shared.nets.quant.mlx_net"),
}


@dataclass(frozen=True)
class Import:
    """One imported module, absolute, and whether it is under `if TYPE_CHECKING`."""

    module: str
    line: int
    typing_only: bool


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def part(path: Path) -> str:
    """The first folder under izwi_lab; empty for modules directly in it."""
    return path.relative_to(ROOT).parts[0] if path.parent != ROOT else ""


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), filename=str(path))


@cache
def imports(path: Path) -> tuple[Import, ...]:
    return tuple(_imports(tree(path), typing_only=False))


def _imports(node: ast.AST, *, typing_only: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, typing_only) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"relative import in line {child.lineno}"
            for alias in child.names:
                yield Import(f"{child.module}.{alias.name}", child.lineno, typing_only)
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            yield from _imports(ast.Module(child.body, []), typing_only=True)
            yield from _imports(ast.Module(child.orelse, []), typing_only=typing_only)
        else:
            yield from _imports(child, typing_only=typing_only)


def own(path: Path) -> Iterator[tuple[Import, str]]:
    """Imports of this package's own parts, as what follows "izwi_lab."; public names count as where they live."""
    for found in imports(path):
        head, _, rest = found.module.partition(".")
        if head != "izwi_lab":
            continue
        if not rest:
            yield found, "runtime"  # `import izwi_lab` reaches the public functions
        rest = izwi_lab._HOME.get(rest, rest).removeprefix("izwi_lab.")
        if rest and (ROOT / rest.split(".")[0]).is_dir():
            yield found, rest


def within(module: str, allowed: set[str]) -> bool:
    return any(module == a or module.startswith(f"{a}.") for a in allowed)


def test_there_is_something_to_look_at():
    assert len(FILES) > 40
    assert {part(f) for f in FILES} - {""} <= set(ARROWS), "a new part needs its arrows here"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_arrows_point_down(path):
    here = part(path)
    allowed = ARROWS[here] | {here} if here else None
    for found, module in own(path):
        if (name(path), module.rpartition(".")[0]) in EXCEPTIONS:
            continue
        if allowed is None:  # the bottom imports no part at all, but for types
            assert found.typing_only or path.name == "__init__.py", f"line {found.line}: {module} from the bottom"
        else:
            assert within(module, allowed), f"line {found.line}: {here} must not import {module}"


@pytest.mark.parametrize("path", [f for f in FILES if part(f) in ("families", "codecs")], ids=name)
def test_one_family_does_not_reach_into_another(path):
    """Whisper may load the voice-activity model through its door, `model.load`; nobody reaches past that door."""
    parts = path.relative_to(ROOT).parts
    mine = ".".join(parts[:2]) if len(parts) > 2 else "families"
    for found, module in own(path):
        through_the_door = module.split(".")[2:] == ["model", "load"]
        if module.startswith("families.") and not found.typing_only and not through_the_door:
            assert within(module, {mine, "families.shared", "families.protocols"}), f"line {found.line}: {module}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_framework_is_imported_only_in_its_own_files(path):
    for found in imports(path):
        framework = FRAMEWORKS.get(found.module.partition(".")[0])
        if framework is None or found.typing_only:
            continue
        homes = (f"{framework}_backend.py", f"{framework}_net.py")
        assert path.name in homes or path.stem.endswith(f"_{framework}"), f"line {found.line} imports {found.module}"


PLAIN = {"config.py", "weights.py", "processor.py"}
# The core of the engine: bookkeeping without arrays, so that it can be read and tested without any.
ENGINE_CORE = {
    *("__init__", "admission", "block_view", "blocks", "chain", "fair", "instruments", "metrics", "plan", "prefixes"),
    *("pressure", "request", "roster", "scheduler", "slots", "tables", "timeline"),
}
CORE_FILES = [ROOT / "engine" / f"{stem}.py" for stem in sorted(ENGINE_CORE)]


@pytest.mark.parametrize("path", [*(f for f in FILES if f.name in PLAIN), *CORE_FILES], ids=name)
def test_plain_files_reach_no_framework_even_through_others(path):
    """config.py, weights.py, processor.py and the engine's core, and everything of ours that they import."""
    barred = {*FRAMEWORKS, "numpy"} if path in CORE_FILES else set(FRAMEWORKS)
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        for found in imports(file):
            if found.typing_only:
                continue
            assert found.module.partition(".")[0] not in barred, f"{name(file)} line {found.line}"
            if found.module.startswith("izwi_lab.") and (target := _file_of(found.module)):
                waiting.append(target)


def _file_of(module: str) -> Path | None:
    """The file that importing `a.b.c` runs: a/b/c.py, a/b/c/__init__.py, or a/b.py for a name in it."""
    parts = module.split(".")[1:]
    for end in (len(parts), len(parts) - 1):
        base = ROOT.joinpath(*parts[:end])
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if end and file.is_file():
                return file
    return None


@pytest.mark.parametrize("path", [f for f in FILES if part(f) not in ("lab", "bench")], ids=name)
def test_transformers_is_no_part_of_it(path):
    assert not [i for i in imports(path) if i.module.partition(".")[0] == "transformers"]


@pytest.mark.parametrize("path", [f for f in FILES if part(f) in ("families", "codecs", "runtime", "engine")], ids=name)
def test_nobody_but_the_backends_asks_which_backend_it_is(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Compare):
            for side in (node.left, *node.comparators):
                asked = isinstance(side, ast.Constant) and side.value in ("torch", "mlx")
                assert not asked, f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_is_short_and_says_what_it_is(path):
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    if text.strip():
        assert ast.get_docstring(tree(path)), "the first line of a module says what it is"
        assert path.name != "utils.py"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_nothing_is_left_to_do_later_and_nothing_is_unpickled(path):
    text = path.read_text("utf-8")
    assert not [w for w in ("TODO", "FIXME", "XXX") if w in text]
    assert not [i for i in imports(path) if i.module.partition(".")[0] in ("pickle", "dill", "joblib", "marshal")]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Raise) and node.exc is not None:
            assert "NotImplementedError" not in ast.unparse(node.exc), f"line {node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec"), f"line {node.lineno}"
