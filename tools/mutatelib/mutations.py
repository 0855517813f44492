"""The faults: every mutation of a module, as a replacement of one piece of its text.

Left alone, because no test can or should find them: annotations, decorators, docstrings and other text, assertions,
`if TYPE_CHECKING`. Assignments to names are not deleted: the NameError that follows would only flatter the tests.
"""

import ast
import re
from dataclasses import dataclass

_COMPARISONS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: (r"is\s+not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: (r"not\s+in", "in"),
}
_ARITHMETIC: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "//"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.BitXor: ("^", "&"),
}
_CALLS = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Mutation:
    path: str  # of the module, below the root of the checkout
    function: str  # the outermost one, Class.method; "" at the level of a module or class
    line: int
    kind: str
    start: int  # bytes of the module's text
    end: int
    text: str  # what replaces them

    def apply(self, source: str) -> str:
        raw = source.encode()
        return (raw[: self.start] + self.text.encode() + raw[self.end :]).decode()

    def lines(self, source: str) -> tuple[str, str]:
        """The whole lines it changes, before and after, without their indentation."""
        raw = source.encode()
        first = raw.rfind(b"\n", 0, self.start) + 1
        last = raw.find(b"\n", self.end)
        last = len(raw) if last < 0 else last
        after = raw[first : self.start] + self.text.encode() + raw[self.end : last]
        return _flat(raw[first:last]), _flat(after)


def _flat(text: bytes) -> str:
    return " ".join(text.decode().split())


def mutations_of(path: str, source: str) -> list[Mutation]:
    finder = _Finder(path, source)
    finder.visit(ast.parse(source))
    return sorted(set(finder.found), key=lambda each: (each.start, each.end, each.text))


class _Finder(ast.NodeVisitor):
    def __init__(self, path: str, source: str) -> None:
        self.found: list[Mutation] = []
        self._path = path
        self._raw = source.encode()
        self._starts = [0]
        for line in self._raw.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._scope: list[str] = []
        self._functions = 0

    # what is found, and where

    def _add(self, kind: str, node: ast.AST, start: int, end: int, text: str) -> None:
        function = ".".join(self._scope) if self._functions else ""
        self.found.append(Mutation(self._path, function, node.lineno, kind, start, end, text))  # type: ignore[attr-defined]

    def _span(self, node: ast.AST) -> tuple[int, int]:
        first, last = self._starts[node.lineno - 1], self._starts[node.end_lineno - 1]  # type: ignore[attr-defined]
        return first + node.col_offset, last + node.end_col_offset  # type: ignore[attr-defined]

    def _text(self, node: ast.AST) -> str:
        start, end = self._span(node)
        return self._raw[start:end].decode()

    def _replace(self, kind: str, node: ast.AST, text: str) -> None:
        self._add(kind, node, *self._span(node), text)

    def _between(self, kind: str, left: ast.AST, right: ast.AST, pattern: str, text: str) -> None:
        """Replaces the operator between two operands; parentheses and line ends may be there, too."""
        start, end = self._span(left)[1], self._span(right)[0]
        found = re.search(pattern.encode(), self._raw[start:end])
        if found:
            self._add(kind, left, start + found.start(), start + found.end(), text)

    # scopes, and what is left alone

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._enter(node.name, node.body)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        outermost = not self._functions
        self._functions += 1
        if outermost:
            self._scope.append(node.name)
        for default in [*node.args.defaults, *(each for each in node.args.kw_defaults if each)]:
            self.visit(default)
        for statement in node.body:
            self.visit(statement)
        if outermost:
            self._scope.pop()
        self._functions -= 1

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815  the name that ast calls

    def _enter(self, name: str, body: list[ast.stmt]) -> None:
        if not self._functions:
            self._scope.append(name)
        for statement in body:
            self.visit(statement)
        if not self._functions:
            self._scope.pop()

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value:
            self.visit(node.value)

    def visit_Assert(self, node: ast.Assert) -> None:
        pass

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass

    def visit_match_case(self, node: ast.match_case) -> None:
        for part in [node.guard] if node.guard else []:
            self.visit(part)
        for statement in node.body:
            self.visit(statement)

    # conditions

    def _negate(self, test: ast.expr) -> None:
        self._replace("negated condition", test, f"not ({self._text(test)})")

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        if not isinstance(node.test, ast.Compare) or len(node.test.ops) > 1:
            self._negate(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        if not isinstance(node.test, ast.Compare):
            self._negate(node.test)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for left, operator, right in zip(operands, node.ops, operands[1:], strict=False):
            pattern, text = _COMPARISONS[type(operator)]
            self._between("comparison", left, right, pattern, text)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._between("and, or", left, right, rf"\b{old}\b", new)
        self.generic_visit(node)

    # values

    def visit_BinOp(self, node: ast.BinOp) -> None:
        text_too = any(
            isinstance(side, ast.JoinedStr | ast.Constant) and not _number(side) for side in (node.left, node.right)
        )
        if type(node.op) in _ARITHMETIC and self._functions and not text_too:
            old, new = _ARITHMETIC[type(node.op)]
            self._between("arithmetic", node.left, node.right, re.escape(old), new)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._replace("constant", node, str(not node.value))
        elif isinstance(node.value, int):
            self._replace("constant", node, f"({self._text(node)} + 1)")
            if node.value > 0:
                self._replace("constant", node, f"({self._text(node)} - 1)")

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in _CALLS:
            self._replace("call", node.func, _CALLS[node.func.id])
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        value = node.value.value if isinstance(node.value, ast.Constant) else ...
        # None for False differs only in its type, which mypy sees.
        if node.value and value is not None and value is not False:
            self._replace("returns None", node, "return None")
        self.generic_visit(node)

    # statements left out

    def _leave_out(self, node: ast.stmt) -> None:
        self._replace("statement left out", node, "pass")

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):
            return
        if self._functions:
            self._leave_out(node)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        if self._functions and all(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets):
            self._leave_out(node)
        self.visit(node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._leave_out(node)
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self._leave_out(node)
        self.generic_visit(node)

    def visit_Delete(self, node: ast.Delete) -> None:
        self._leave_out(node)

    def visit_Break(self, node: ast.Break) -> None:
        self._replace("break, continue", node, "continue")

    def visit_Continue(self, node: ast.Continue) -> None:
        self._replace("break, continue", node, "break")

    def visit_With(self, node: ast.With | ast.AsyncWith) -> None:
        if not any(item.optional_vars for item in node.items):
            start, end = self._span(node)[0], self._span(node.items[-1].context_expr)[1]
            colon = self._raw.index(b":", end)
            if not self._raw[end:colon].strip(b" )\n,"):
                self._add("without its lock", node, start, colon, "if True")
        self.generic_visit(node)

    visit_AsyncWith = visit_With  # noqa: N815  the name that ast calls


def _number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int)
