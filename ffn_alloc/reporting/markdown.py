"""A document as Markdown, with the PNG figures beside it."""

import re

from ffn_alloc.reporting.document import Block, Bullets, Document, Paragraph, TableBlock
from ffn_alloc.reporting.table import Table


def render(document: Document) -> str:
    parts = [f"# {_text(document.title)}"]
    for section in document.sections:
        if section.title:
            parts.append(f"## {_text(section.title)}")
        parts += [_block(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def _block(block: Block) -> str:
    if isinstance(block, Paragraph):
        return f"**{_text(block.text)}**" if block.lead else _text(block.text)
    if isinstance(block, Bullets):
        title = f"{_text(block.folded_under)}:\n\n" if block.folded_under else ""
        return title + "\n".join(f"- {_text(item)}" for item in block.items)
    if isinstance(block, TableBlock):
        caption = f"{_text(block.caption)}\n\n" if block.caption else ""
        return caption + _table(block.table)
    caption = _text(block.caption)
    return f"![{caption}](figures/{block.name}.png)\n\n*{caption}*"


def _table(table: Table) -> str:
    names = [_text(column.name) for column in table.columns]
    rule = ["---:" if column.number else "---" for column in table.columns]
    rows = [[_text(cell.text) for cell in row] for row in table.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in [names, rule, *rows])


def _text(text: str) -> str:
    """On one line, and nothing in it is Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", " ".join(text.split()))
