"""Numbers of the bundled model on the pages are those of its card; `python -m docs.quote_mini` writes them."""

import pytest

from docs.page_blocks import Block, blocks, outputs, with_outputs
from docs.quote_mini import CARD, card_numbers, quoted, write_numbers

CARD_TEXT = """
| split | task | language | value | chance | n |
|---|---|---|---|---|---|
| val | text->image R@1 | en | 0.742 | 0.0018 | 547 |

| language | queries | shown | correct | first hit | correct |
|---|---|---|---|---|---|
| ja | 650 | 0.107 | 0.107 | 0.53 | 0.68 |
"""


def test_no_page_quotes_another_model() -> None:
    """python -m docs.quote_mini numbers puts it right."""
    assert write_numbers(check=True) == []
    assert len(card_numbers(CARD.read_text(encoding="utf-8"))) > 100


def test_both_tables_of_a_card_are_read() -> None:
    numbers = card_numbers(CARD_TEXT)
    assert numbers["card val text->image R@1 en"] == 0.742
    assert (numbers["match ja correct"], numbers["match ja first hit correct"]) == (0.107, 0.68)


def test_a_marked_number_keeps_its_decimals_and_its_per_cent() -> None:
    page = "R@1 <!--=a b-->0.1<!--=-->, <!--=a b-->**0.999**<!--=-->, <!--=c-->3 %<!--=--> and 0.5"
    values = {"a b": 0.742, "c": 0.14}
    assert quoted(page, values) == (
        "R@1 <!--=a b-->0.7<!--=-->, <!--=a b-->**0.742**<!--=-->, <!--=c-->14 %<!--=--> and 0.5"
    )
    assert quoted(quoted(page, values), values) == quoted(page, values)


def test_a_number_printed_above_is_quoted_below_it() -> None:
    page = "```text\none 0.25\ntwo 0.5 -0.75\n```\n<!--=read-->It is <!--=printed 1 2 2-->0.00<!--=-->.\n"
    assert "<!--=printed 1 2 2-->-0.75<!--=-->" in quoted(page, {})


def test_an_unknown_number_is_named() -> None:
    with pytest.raises(ValueError, match="card val nDCG en"):
        quoted("<!--=card val nDCG en-->0.5<!--=-->", card_numbers(CARD_TEXT))


def test_text_blocks_take_what_the_command_above_prints() -> None:
    page = (
        "```sh\na\n```\n\n```text\nold\n```\n<!-- code: x.py f -->\n```python\nleft alone\n```\n```text\nolder\n```\n"
    )
    fresh = outputs(page, lambda block: f"{block.kind} {block.body}")
    assert fresh == ["sh a\n", "sh a\n"]
    filled = with_outputs(page, fresh)
    assert [block for block in blocks(filled) if block.kind == "text"] == [Block("text", "sh a\n")] * 2
    assert "left alone" in filled
