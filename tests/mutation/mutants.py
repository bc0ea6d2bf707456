"""Mutants of a module: its source with one small mistake each. Pure; it runs nothing."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType

#: What each operator becomes.
_OTHERS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
#: Fields of nodes that hold annotations, which nothing runs.
_ANNOTATIONS = {"annotation", "returns"}
#: Fields of statements that hold other statements.
_INNER = ("body", "orelse", "finalbody", "handlers", "cases", "decorator_list")

Function = ast.FunctionDef | ast.AsyncFunctionDef
Place = tuple[str, int | None]


@dataclass(frozen=True)
class Mutant:
    """A module with one mistake.

    Attributes:
        lines: those of the code that is wrong.
        scope: the function or class around it, with those around that.
        before: the statement there, without those within it.
        after: the statement with the mistake.
        function: the name and first line of the outermost function around it; None for what runs
            when the module is imported.
    """

    lines: range
    scope: str
    before: str
    after: str
    function: tuple[str, int] | None
    _module: ast.Module
    _change: tuple[ast.AST, Place, object]

    @property
    def name(self) -> str:
        """Where it is and what it changes, without the number of its line."""
        return f"{self.scope}: {self.before} -> {self.after}"

    def code(self, path: str) -> CodeType:
        """Return the code of the whole module."""
        node, place, new = self._change
        old = _put(node, place, new)
        try:
            return compile(self._module, path, "exec")
        finally:
            _put(node, place, old)


@dataclass(frozen=True)
class _Around:
    """What is around a node: the innermost statement, the scope, the outermost function."""

    statement: ast.AST
    scope: tuple[str, ...] = ()
    function: tuple[str, int] | None = None


def mutants_of(source: str) -> list[Mutant]:
    """Return all mutants of a module, in the order of its lines."""
    module = ast.parse(source)
    found = []
    for node, around in _nodes(module, _Around(module)):
        for (field, index), new in _replacements(node):
            changed: ast.AST = node
            if index is not None and isinstance(new, ast.Pass):
                changed = getattr(node, field)[index]
                before, after = ast.unparse(changed), "pass"
            else:
                before = _text(around.statement)
                old = _put(node, (field, index), new)
                after = _text(around.statement)
                _put(node, (field, index), old)
            lines = range(changed.lineno, changed.end_lineno + 1)  # type: ignore[attr-defined]
            found.append(
                Mutant(
                    lines,
                    ".".join(around.scope) or "module",
                    " ".join(before.split()),
                    " ".join(after.split()),
                    around.function,
                    module,
                    (node, (field, index), new),
                )
            )
    return sorted(found, key=lambda mutant: mutant.lines[0])


def _nodes(node: ast.AST, around: _Around) -> Iterator[tuple[ast.AST, _Around]]:
    """Yield every node that is run with what is around it, parents first."""
    if isinstance(node, ast.stmt):
        around = _Around(node, around.scope, around.function)
    within = around
    if isinstance(node, Function | ast.ClassDef):
        function = around.function
        if function is None and isinstance(node, Function):
            first = node.decorator_list[0].lineno if node.decorator_list else node.lineno
            function = (node.name, first)
        within = _Around(node, (*around.scope, node.name), function)
    yield node, within
    for name, value in ast.iter_fields(node):
        for each in value if isinstance(value, list) else [value]:
            if not isinstance(each, ast.AST) or name in _ANNOTATIONS or _saves_memory(each):
                continue
            if name == "decorator_list":
                yield from _nodes(each, _Around(each, within.scope, around.function))
            else:
                yield from _nodes(each, within if name == "body" else around)


def _saves_memory(node: ast.AST) -> bool:
    return isinstance(node, ast.keyword) and node.arg == "slots"


def _text(statement: ast.AST) -> str:
    """Return the code of a statement without the statements within it."""
    shell = copy.copy(statement)
    for field in _INNER:
        if isinstance(getattr(shell, field, None), list):
            setattr(shell, field, [])
    return ast.unparse(shell)


def _replacements(node: ast.AST) -> list[tuple[Place, object]]:
    """Return the mistakes that can be made in a node: what of it becomes what."""
    found: list[tuple[Place, object]] = []
    match node:
        case ast.Compare(ops=ops):
            found += [(("ops", i), _OTHERS[type(op)]()) for i, op in enumerate(ops)]
        case ast.BinOp(op=op) | ast.AugAssign(op=op) | ast.BoolOp(op=op) if type(op) in _OTHERS:
            found.append((("op", None), _OTHERS[type(op)]()))
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test) if not _flips(test):
            negated = ast.copy_location(ast.UnaryOp(ast.Not(), test), test)
            found.append((("test", None), negated))
        case ast.Constant(value=bool(value)):
            found.append((("value", None), not value))
        case ast.Constant(value=int(value) | float(value)):
            found.append((("value", None), value + 1))
        case ast.Return(value=value) if value is not None and not _is_nothing(value):
            found.append((("value", None), ast.copy_location(ast.Constant(None), value)))
        case _:
            pass
    body = getattr(node, "body", [])
    for i, statement in enumerate(body if isinstance(body, list) else []):
        match statement:
            case ast.Expr(value=ast.Call()) | ast.Assign() | ast.AugAssign() | ast.Delete():
                if not isinstance(node, ast.Module | ast.ClassDef):
                    found.append((("body", i), ast.copy_location(ast.Pass(), statement)))
            case _:
                pass
    return found


def _flips(test: ast.expr) -> bool:
    """Return whether a test becomes its contrary by another operator, which is a mutant, too."""
    flip = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
    return isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], flip)


def _is_nothing(value: ast.expr) -> bool:
    """Return whether None says the same."""
    return isinstance(value, ast.Constant) and (value.value is None or value.value is False)


def _put(node: ast.AST, place: Place, new: object) -> object:
    """Put something into a node; return what was there."""
    name, index = place
    if index is None:
        old = getattr(node, name)
        setattr(node, name, new)
    else:
        old = getattr(node, name)[index]
        getattr(node, name)[index] = new
    return old
