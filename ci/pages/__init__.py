"""The site: what writes its sources, and what Sphinx needs to build it.

`ci.tools.site` builds and checks it; `sources` writes the pages that are generated,
`conf` configures Sphinx, `docstrings` and `links` extend it.
"""
