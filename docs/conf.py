"""How the documentation is built: `make docs`."""

import importlib.metadata
import os
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
NOTEBOOKS = HERE / "notebooks"
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # for commands in pages
os.environ.setdefault("PLOTLY_RENDERER", "plotly_mimetype")

project = "emerdiff_probe"
author = "the emerdiff_probe developers"
copyright = "the emerdiff_probe developers, Apache-2.0"
release = version = importlib.metadata.version("emerdiff_probe")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
templates_path = ["_templates"]  # of the pages of the API: classes with their methods, under short names
html_static_path = ["_static"]
html_theme = "pydata_sphinx_theme"
html_title = "emerdiff_probe"
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": False, "header_links_before_dropdown": 6}
html_show_sourcelink = False
ALONE = ("start", "concepts", "gallery", "families", "glossary", "changelog")  # no pages below them
html_sidebars: dict[str, list[str]] = {page: [] for page in ALONE}

# Docstrings are Google's style; types stand in the signatures.
default_role = "py:obj"  # `segment` in a docstring is a link where there is such a page, else code
autosummary_generate = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "all"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

# Links into the libraries' own documentation need the network: `DOCS_INTERSPHINX=1 make docs`.
intersphinx_mapping = (
    {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "xarray": ("https://docs.xarray.dev/en/stable", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
        "pandas": ("https://pandas.pydata.org/docs", None),
        "PIL": ("https://pillow.readthedocs.io/en/stable", None),
    }
    if os.environ.get("DOCS_INTERSPHINX")
    else {}
)

# Pages with code are run at every build; the notebooks come with the outputs that they were committed with.
myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_excludepatterns = ["notebooks/*"]
nb_execution_in_temp = True
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True
suppress_warnings = ["mystnb.unknown_mime_type"]  # interactive figures; their pictures stand beside them


def copy_notebooks(*_: object) -> None:
    """The notebooks become pages: Sphinx reads only what lies below its own folder."""
    NOTEBOOKS.mkdir(exist_ok=True)
    for notebook in sorted((HERE.parent / "notebooks").glob("[0-9]*.ipynb")):
        shutil.copyfile(notebook, NOTEBOOKS / notebook.name)


def setup(app: object) -> None:
    """Sphinx's entry."""
    app.connect("builder-inited", copy_notebooks)  # type: ignore[attr-defined]
