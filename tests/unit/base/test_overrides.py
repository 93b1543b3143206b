"""Any path survives Hydra's grammar of overrides."""

from __future__ import annotations

from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bestepoch.base.config.overrides import quote_override

PARSER = OverridesParser.create()
PATHS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"], exclude_characters="\x00"), min_size=1)


@settings(max_examples=25, deadline=None)
@given(PATHS)
@example("/home/o'brien/it's/x")
@example("C:\\")
@example("\\'")
@example("a,b=c{d}[e] (f)")
def test_a_quoted_path_is_read_as_it_was(path: str) -> None:
    (override,) = PARSER.parse_overrides([f"hydra.sweep.dir={quote_override(path)}"])
    value = override.value()
    assert getattr(value, "text", value) == path
