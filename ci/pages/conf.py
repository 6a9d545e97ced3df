"""Sphinx's configuration: what `./ci/site` builds from the folder of sources."""

import importlib.util
import re

from ci.tools.notebooks import public_url

project = "State, Soup & Speculation"
author = copyright = "The State, Soup & Speculation contributors"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "ci.pages.links",
    "ci.pages.docstrings",
    "ci.pages.listings",
]

# -- notebooks: shown as they were committed, never executed
nb_execution_mode = "off"
nb_render_markdown_format = "myst"  # sentences with measured values hold formulas
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
myst_heading_slug_func = "ci.pages.links.slug"
smartquotes = False  # x' is a derivative, and "legs" a string
highlight_language = "none"  # the README shows commands
suppress_warnings = ["misc.highlighting_failure"]  # lines for a shell in a Python cell

# -- the modules: what a reader without a GPU has not installed is not needed to read
autodoc_mock_imports = [n for n in ("triton",) if not importlib.util.find_spec(n)]
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
add_module_names = False

# -- nothing is fetched: ci/pages/vendor/README.md says where these come from
mathjax_path = "mathjax.js"
mathjax3_config = {"options": {"enableMenu": False}}  # its menu would ask a CDN
nb_ipywidgets_js = {
    "widgets.js": {},
    "require.js": {},
    # Where widgets that it does not know are looked for: here, not on a CDN.
    "embed-amd.js": {"data-jupyter-widgets-cdn": "../_static/"},
}
html_static_path = [
    "static",
    "vendor/fonts",
    *(f"vendor/{name}" for name in ("mathjax.js", "require.js", "embed-amd.js")),
]

# -- the look
html_theme = "sphinx_book_theme"
html_title = project
html_favicon = "static/favicon.svg"
html_context = {"default_mode": "auto"}
html_copy_source = True
html_domain_indices = False  # the list of modules is a page of ours
html_sourcelink_suffix = ""
html_css_files = ["site.css"]
html_js_files = ["site.js", "scoreboard.js"]
html_show_copyright = False
html_last_updated_fmt = None
html_theme_options = {
    "use_download_button": True,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "show_navbar_depth": 1,
    "home_page_in_toc": False,
    "navbar_persistent": [],  # the sidebar has the search
    "path_to_docs": "",
}
_url = public_url().removesuffix(".git").rstrip("/")
if re.fullmatch(r"https://github\.com/[^/]+/[^/]+", _url):
    html_theme_options |= {
        "repository_url": _url,
        "repository_branch": "main",
        "use_repository_button": True,
        "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    }
