"""Benchmarks for ./ci/bench, one module each.

A module has a docstring (its first line is what `./ci/bench --list` shows), PEERS (pip
requirements that the collection itself does not need; they go into an environment of
their own), TARGETS (a list of `ci.tools.bench.Target`) and `run(options)`, which
returns tables by name. It imports peers inside functions, and lists one that is not
there as "not installed" instead of failing.
"""
