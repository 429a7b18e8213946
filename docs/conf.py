"""Sphinx: the guide as it stands in the repository, and an API reference from the docstrings (`make docs`)."""

import sb3_trmrl

project = "sb3_trmrl"
version = release = sb3_trmrl.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"sb3_trmrl {version}"
# Links to places within a page, as GitHub names them
myst_heading_anchors = 4
# Links to files that are no pages, such as hyperparams/trmrl.yml
suppress_warnings = ["myst.xref_missing"]

autoclass_content = "class"
autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
autodoc_typehints = "signature"
