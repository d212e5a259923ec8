"""Numbers as text, tables, and their HTML and Markdown: user input stays text."""

import pytest

pytest.importorskip("matplotlib")

from ffn_alloc.reporting import html, markdown, words
from ffn_alloc.reporting.document import Bullets, Document, Paragraph, Section, TableBlock
from ffn_alloc.reporting.drawing import Picture
from ffn_alloc.reporting.table import Column, Table, number, text

EVIL = '<script>alert("1")</script> a|b *c* `d`'


@pytest.mark.parametrize(
    "value, expected",
    [(1.234, "+1.23"), (-1.235, "−1.24"), (0.001, "0.00"), (-0.001, "0.00"), (-120.0, "−120.00")],
)
def test_signed(value, expected):
    assert words.signed(value) == expected


@pytest.mark.parametrize(
    "p, expected", [(1e-9, "<0.001"), (0.0123, "0.012"), (0.0999, "0.100"), (0.5, "0.50")]
)
def test_p_values(p, expected):
    assert words.p_value(p) == expected


def test_lists_and_scores():
    assert [words.listed(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]
    assert words.score(0.25391, "accuracy") == "0.2539"
    assert words.score(28.1234, "perplexity") == "28.12"
    assert words.count(1, "seed") == "1 seed" and words.count(1500, "item") == "1,500 items"


@pytest.fixture
def document():
    table = Table(
        (Column("run"), Column("score_%", True)),
        (
            (text(EVIL), number(1.5, "+1.50", "better", 0.5)),
            (text("plain"), number(None, "")),
        ),
    )
    picture = Picture("loss-1", f"caption {EVIL}", "<svg/>", b"png")
    blocks = (Paragraph(EVIL, lead=True), Bullets((EVIL,)), TableBlock(EVIL, table), picture)
    return Document(EVIL, (Section(EVIL, blocks),))


def test_html_escapes(document):
    page = html.render(document)
    assert page.count("<script>") == 1  # ours
    assert "alert(&quot;1&quot;)" in page
    assert 'data-sort="1.5"' in page and 'class="number better"' in page
    assert "score_<wbr>%" in page
    assert 'src="data:image/svg+xml;base64,' in page


def test_markdown_escapes(document):
    page = markdown.render(document)
    assert "<script>" not in page
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(rows) == 4
    assert all(row.replace("\\|", "").count("|") == 3 for row in rows)
    assert "](figures/loss-1.png)" in page
