"""Mutants of a module: its source with one small mistake each. Pure; it runs nothing."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Mutant:
    """A module with one mistake.

    Attributes:
        line: where the mistake is.
        before: the code there.
        after: the code with the mistake.
        tree: the whole module.
    """

    line: int
    before: str
    after: str
    tree: ast.Module


def mutants_of(source: str) -> list[Mutant]:
    """Return all mutants of a module, in the order of its lines."""
    whole = ast.parse(source)
    found = []
    for number, node in enumerate(_nodes(whole)):
        for which in range(len(_replacements(node))):
            tree = copy.deepcopy(whole)
            target = list(_nodes(tree))[number]
            place, new = _replacements(target)[which]
            before = ast.unparse(target)
            _put(target, place, new)
            line = getattr(node, "lineno", 0)
            found.append(Mutant(line, before, ast.unparse(target), ast.fix_missing_locations(tree)))
    return sorted(found, key=lambda mutant: mutant.line)


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield every node that is run, parents first."""
    yield tree
    for name, value in ast.iter_fields(tree):
        if name not in _ANNOTATIONS:
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, ast.AST):
                    yield from _nodes(each)


Place = tuple[str, int | None]


def _replacements(node: ast.AST) -> list[tuple[Place, object]]:
    """Return the mistakes that can be made in a node: what of it becomes what."""
    found: list[tuple[Place, object]] = []
    match node:
        case ast.Compare(ops=ops):
            found += [(("ops", i), _OTHERS[type(op)]()) for i, op in enumerate(ops)]
        case ast.BinOp(op=op) | ast.AugAssign(op=op) | ast.BoolOp(op=op) if type(op) in _OTHERS:
            found.append((("op", None), _OTHERS[type(op)]()))
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
            found.append((("test", None), ast.UnaryOp(ast.Not(), test)))
        case ast.Constant(value=bool(value)):
            found.append((("value", None), not value))
        case ast.Constant(value=int(value) | float(value)):
            found.append((("value", None), value + 1))
        case ast.Return(value=value) if value is not None and not _is_none(value):
            found.append((("value", None), ast.Constant(None)))
        case _:
            pass
    body = getattr(node, "body", [])
    for i, statement in enumerate(body if isinstance(body, list) else []):
        match statement:
            case ast.Expr(value=ast.Call()) | ast.Assign() | ast.AugAssign() | ast.Delete():
                if not isinstance(node, ast.Module | ast.ClassDef):
                    found.append((("body", i), ast.Pass()))
            case _:
                pass
    return found


def _is_none(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is None


def _put(node: ast.AST, place: Place, new: object) -> None:
    name, index = place
    if index is None:
        setattr(node, name, new)
    else:
        getattr(node, name)[index] = new
