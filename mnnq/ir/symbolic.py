"""Sizes that are not numbers yet: polynomials over the symbols of a model's dynamic axes.

A size such as ``2 * batch * seq + 1`` is a `Poly`; what has no polynomial form (an inexact division, a
minimum) becomes a symbol of its own whose name states the expression, so equal expressions stay equal.
Symbols are sizes of axes: integers that are not negative.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: Sorted symbols of one term; the empty tuple is the constant term.
Monomial = tuple[str, ...]


@dataclass(frozen=True)
class Poly:
    """A polynomial with integer coefficients.

    Attributes
    ----------
    terms
        Pairs of monomial and non-zero coefficient, sorted by monomial.
    """

    terms: tuple[tuple[Monomial, int], ...]

    @property
    def non_negative(self) -> bool:
        """Whether no coefficient is negative, hence the value is not either."""
        return all(factor >= 0 for _, factor in self.terms)

    def __str__(self) -> str:
        text = ""
        for monomial, factor in sorted(self.terms, key=lambda term: (not term[0], term)):
            size = abs(factor)
            part = "*".join([str(size)] * (size != 1 or not monomial) + list(monomial))
            if not text:
                text = part if factor > 0 else f"-{part}"
            else:
                text += f" + {part}" if factor > 0 else f" - {part}"
        return text


def symbol(name: str) -> Poly:
    """The polynomial that is one symbol."""
    return Poly((((name,), 1),))


def add(a: int | Poly, b: int | Poly) -> int | Poly:
    """Sum of two sizes."""
    terms = dict(_terms(a))
    for monomial, factor in _terms(b).items():
        terms[monomial] = terms.get(monomial, 0) + factor
    return _make(terms)


def multiply(a: int | Poly, b: int | Poly) -> int | Poly:
    """Product of two sizes."""
    terms: dict[Monomial, int] = {}
    for left, x in _terms(a).items():
        for right, y in _terms(b).items():
            monomial = tuple(sorted(left + right))
            terms[monomial] = terms.get(monomial, 0) + x * y
    return _make(terms)


def subtract(a: int | Poly, b: int | Poly) -> int | Poly:
    """Difference of two sizes."""
    return add(a, multiply(b, -1))


def divide_exactly(a: int | Poly, b: int | Poly) -> int | Poly | None:
    """Quotient when `b` is a single term that divides every term of `a`, else None."""
    divisor = list(_terms(b).items())
    if len(divisor) != 1:
        return None if a != b or not divisor else 1
    symbols, factor = divisor[0]
    terms: dict[Monomial, int] = {}
    for monomial, value in _terms(a).items():
        rest = list(monomial)
        for name in symbols:
            if name not in rest:
                return None
            rest.remove(name)
        if value % factor:
            return None
        terms[tuple(rest)] = value // factor
    return _make(terms)


def divide(a: int | Poly, b: int | Poly) -> int | Poly:
    """Integer division rounding toward zero; opaque when it is not exact."""
    exact = divide_exactly(a, b)
    if exact is not None:
        return exact
    if isinstance(a, int) and isinstance(b, int) and b:
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return symbol(f"({a})/({b})")


def opaque(function: str, *arguments: int | Poly) -> Poly:
    """A symbol that stands for a function of sizes."""
    return symbol(f"{function}({', '.join(map(str, arguments))})")


def _terms(value: int | Poly) -> Mapping[Monomial, int]:
    if isinstance(value, Poly):
        return dict(value.terms)
    return {(): value} if value else {}


def _make(terms: Mapping[Monomial, int]) -> int | Poly:
    kept = {monomial: factor for monomial, factor in terms.items() if factor}
    if not kept:
        return 0
    if list(kept) == [()]:
        return kept[()]
    return Poly(tuple(sorted(kept.items())))
