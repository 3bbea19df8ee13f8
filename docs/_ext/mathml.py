"""Formulas as MathML, which browsers draw by themselves: no script, no font and no network, unlike MathJax or KaTeX.

docutils, which Sphinx stands on, converts them; Sphinx only lacks the renderer that asks it to.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx


def inline(self: Any, node: nodes.math) -> None:
    """A formula within a line."""
    self.body.append(_mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def block(self: Any, node: nodes.math_block) -> None:
    """A formula by itself."""
    self.body.append(f'<div class="math">{_mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def _mathml(text: str, *, as_block: bool) -> str:
    """What docutils makes of it; what it cannot read ends the build, for a page without a formula is wrong."""
    return str(latex2mathml.tex2mathml(text, as_block=as_block))


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx asks for this."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
