"""How the documentation is built: `./dev docs`. Nothing is fetched, neither while it is built nor while it is read."""

from __future__ import annotations

import sys
from inspect import cleandoc
from pathlib import Path

from sphinx.application import Sphinx

from fanin.rule import Rule

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

project = "fanin"
author = "the authors of fanin"
copyright = author  # noqa: A001  # Sphinx asks for this name
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",  # docstrings have Google's sections
    "sphinx_copybutton",
    "mathml",  # ours, in _ext
]
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [
    # What belongs to other projects: their inventories would be fetched from the network.
    ("py:.*", r"(torch|numpy|np|os|pathlib|collections|typing|click|_abc|argparse)(\..*)?"),
    (
        "py:.*",
        r"(Any|Callable|Iterable|Iterator|Mapping|Sequence|Path|PathLike|Literal|str|optional|inf|nan)",
    ),
    # Types that signatures mention and that are no part of what a user calls.
    (
        "py:.*",
        r"(fanin\.)?(stores|summary|trial|finding|cause|rule|race|change|examine|repairs|capture|sagemaker\.tensor)\..*",
    ),
]

myst_enable_extensions = ["dollarmath", "deflist", "attrs_inline"]
myst_heading_anchors = 3
myst_dmath_double_inline = True

default_role = "code"  # docstrings write names in single backticks
autodoc_typehints = "signature"
autoclass_content = "both"  # a class, and what it is made of
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = "fanin"
html_static_path = ["_static"]
html_css_files = ["fanin.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"source_repository": "", "navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "github-dark"
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True


def shorten(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Of a rule its first sentence: the rest is its page, in Markdown."""
    if isinstance(obj, type) and issubclass(obj, Rule):
        made = obj.__init__.__doc__ or ""
        lines[:] = [obj.headline(), "", *cleandoc(made).splitlines()]


def setup(app: Sphinx) -> None:
    """Sphinx asks for this; before napoleon, which reads what is left."""
    app.connect("autodoc-process-docstring", shorten, priority=1)
