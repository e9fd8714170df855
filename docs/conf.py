"""The documents as pages: `.ci/docs`, or, with the library installed, sphinx (CONTRIBUTING.md)."""
import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

import make_api  # noqa: E402

import sparselsh  # noqa: E402

project = "sparselsh"
author = "the sparselsh developers"
project_copyright = "the sparselsh developers"
version = release = sparselsh.__version__

extensions = [
    "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax", "numpydoc", "sphinx_design", "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = [
    "_build", "examples", "gallery/**/*.ipynb", "gallery/**/*.py", "sg_execution_times.rst",
    "api.md",  # for readers of the source; the reference takes its place here
]
suppress_warnings = [
    "config.cache",  # of functions in the gallery's settings
    "autosummary.import_cycle",  # tables name objects in full
]
templates_path = []
nitpicky = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# --- reference: a page per public object and per method, written anew by each build --------------

autodoc_typehints = "none"  # the docstrings give types and shapes
autosummary_generate = False  # make_api.reference_pages writes the pages
default_role = "py:obj"  # `fit` in a docstring is a link to the method
maximum_signature_line_length = 60  # a longer signature has one parameter per line
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
intersphinx_mapping = {} if os.environ.get("SPARSELSH_DOCS_OFFLINE", "1") == "1" else {
    "python": ("https://docs.python.org/3", None),
    "numpy": ("https://numpy.org/doc/stable", None),
    "scipy": ("https://docs.scipy.org/doc/scipy", None),
    "sklearn": ("https://scikit-learn.org/stable", None),
}


def write_reference():
    """Write docs/reference; fail if a public name is in no section of make_api.SECTIONS."""
    make_api.check_sections()
    folder = DOCS / "reference"
    folder.mkdir(exist_ok=True)
    pages = make_api.reference_pages()
    for name, text in pages.items():
        page = folder / name
        # leave an unchanged page alone, so that Sphinx does not build it again
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")
    for page in folder.glob("*.rst"):
        if page.name not in pages:
            page.unlink()


write_reference()

# --- gallery ------------------------------------------------------------------------------------

warnings.filterwarnings("error", module="__main__")  # an example that warns is no example
sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"plot_",
    "abort_on_example_error": True,
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": ("matplotlib",),
    "matplotlib_animations": False,
    "remove_config_comments": True,
    "show_memory": False,
    "download_all_examples": False,
    "plot_gallery": True,
    "thumbnail_size": (480, 320),
}

# --- pages ---------------------------------------------------------------------------------------

html_theme = "pydata_sphinx_theme"
html_title = "sparselsh"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_js_files = ["figures.js"]
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": "sparselsh"},
    "github_url": "https://github.com/sparselsh/sparselsh",
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "show_prev_next": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
# Pages without pages below or beside them have no navigation column; examples need its room for
# their figures.
html_sidebars = {
    "index": [], "quickstart": [], "benchmarks": [], "accuracy": [], "gallery/*": [],
    "search": [], "genindex": [], "py-modindex": [],
}

# Links that lead out of this folder, or to files for readers of the source, and what they are here.
MOVED = {
    "../bench/README.md": "measuring.md",
    "api.md": "reference/index.rst",
    "../api.md": "../reference/index.rst",
}


def setup(app):
    """Put the links right."""
    app.connect("source-read", replace_links)


def replace_links(app, name, source):
    """Replace links of MOVED in the text of a page."""
    for old, new in MOVED.items():
        source[0] = source[0].replace(f"({old})", f"({new})")
