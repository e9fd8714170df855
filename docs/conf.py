"""The documents as pages: `.ci/docs`, or `python -P -m sphinx -W --keep-going -b html docs docs/_build/html`."""
import inspect
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
    "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.intersphinx", "sphinx.ext.mathjax", "numpydoc", "sphinx_design",
    "sphinx_copybutton", "sphinx_gallery.gen_gallery",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "examples", "gallery/**/*.ipynb", "gallery/**/*.py", "sg_execution_times.rst"]
suppress_warnings = ["config.cache"]  # of functions in the gallery's settings
templates_path = []
nitpicky = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# --- reference: the public names of make_api.MODULES, each with its whole docstring --------------------------

autodoc_typehints = "none"  # the docstrings say types, with shapes
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
intersphinx_mapping = {} if os.environ.get("SPARSELSH_DOCS_OFFLINE", "1") == "1" else {
    "python": ("https://docs.python.org/3", None), "numpy": ("https://numpy.org/doc/stable", None),
    "scipy": ("https://docs.scipy.org/doc/scipy", None), "sklearn": ("https://scikit-learn.org/stable", None),
}

# methods that scikit-learn adds to estimators, with links into its own documents
SKLEARNS = {"get_metadata_routing", "set_fit_request", "set_partial_fit_request", "set_score_request"}


def write_reference():
    """docs/reference/*.rst, a page a section; they are made anew with each build."""
    folder = DOCS / "reference"
    folder.mkdir(exist_ok=True)
    names = []
    for title, module in make_api.MODULES.items():
        name = "api_" + title.lower().replace(" ", "_")
        names.append(name)
        lines = [title, "=" * len(title), ""]
        hidden = ",".join(sorted(make_api.INTERNAL | SKLEARNS))
        for public in module.__all__:
            thing = getattr(module, public)
            is_top = getattr(sparselsh, public, None) is thing
            place = f"sparselsh.{public}" if is_top else f"{module.__name__}.{public}"
            if inspect.isclass(thing):
                lines += [f".. autoclass:: {place}", "   :members:", f"   :exclude-members: {hidden}", ""]
            elif callable(thing):
                lines += [f".. autofunction:: {place}", ""]
        write_if_new(folder / f"{name}.rst", "\n".join(lines))
    for page in folder.glob("api_*.rst"):
        if page.stem not in names:
            page.unlink()
    toctree = "\n".join(f"   {name}" for name in names)
    write_if_new(folder / "index.rst", f"API\n===\n\n.. toctree::\n   :maxdepth: 2\n\n   ../api\n{toctree}\n")


def write_if_new(path, text):
    """Leave a page that is as it should be, so that it is not built again."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


write_reference()

# --- gallery -------------------------------------------------------------------------------------------------

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

# --- pages ---------------------------------------------------------------------------------------------------

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
html_sidebars = {"gallery/*": [], "quickstart": [], "coming": [], "changes": [], "contributing": []}

# Links of the documents that lead out of this folder, as they are here.
MOVED = {"../bench/README.md": "measuring.md"}


def setup(app):
    """Put the links right."""
    app.connect("source-read", follow)


def follow(app, name, source):
    """Replace links of MOVED in the text of a page."""
    for old, new in MOVED.items():
        source[0] = source[0].replace(f"({old})", f"({new})")
