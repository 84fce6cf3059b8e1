"""Matchers that live elsewhere, made to run under `kbc`: `kbc.load_matcher("chm", checkout=…, checkpoint=…)`.

Upstream code is never copied here: an adapter runs the user's own checkout. Imported as `kbc_adapters`.
`TEMPLATE.py` and `examples/add_a_matcher.md` show how to add one.
"""
