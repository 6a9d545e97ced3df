"""What the commands in ci/ are made of; nothing here is needed to read a notebook."""

import sys

# nbformat's jsonschema compiles a grammar for internationalised addresses, which no
# notebook's schema asks for: 2 s of every start, spared by saying it is not there.
sys.modules.setdefault("rfc3987_syntax", None)
