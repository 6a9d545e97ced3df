"""The collection's code: one thin module a notebook, and the rooms they share."""
