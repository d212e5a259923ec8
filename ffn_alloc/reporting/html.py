"""A document as one HTML file that needs no other: styles, script and pictures stand in it."""

import base64
import math
from html import escape

from ffn_alloc.reporting.document import Block, Bullets, Document, Paragraph, Section, TableBlock
from ffn_alloc.reporting.drawing import Picture
from ffn_alloc.reporting.page import CSS, SCRIPT
from ffn_alloc.reporting.table import Cell, Column, Table

GENERATOR = '<meta name="generator" content="ffn_alloc report">'
_BETTER_RGB, _WORSE_RGB = "0 114 178", "213 94 0"
_DENSE = 10  # columns; more stand closer together
_STRONGEST = 0.55  # opacity of the deepest tint: text on it stays readable


def render(document: Document) -> str:
    title = escape(document.title)
    sections = "\n".join(_section(section) for section in document.sections)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{GENERATOR}\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{CSS}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{title}</h1>\n{sections}\n</main>\n"
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    title = f"<h2>{escape(section.title)}</h2>\n" if section.title else ""
    return f"<section>\n{title}" + "\n".join(map(_block, section.blocks)) + "\n</section>"


def _block(block: Block) -> str:
    if isinstance(block, Paragraph):
        lead = ' class="lead"' if block.lead else ""
        return f"<p{lead}>{escape(block.text)}</p>"
    if isinstance(block, Bullets):
        warning = ' class="warning"' if block.warning else ""
        items = "".join(f"<li>{escape(item)}</li>" for item in block.items)
        return _folded(block.folded_under, f"<ul{warning}>{items}</ul>")
    if isinstance(block, TableBlock):
        if block.folded:
            return _folded(block.caption, _table(block.table, ""))
        return _table(block.table, block.caption)
    return _figure(block)


def _folded(title: str, content: str) -> str:
    if not title:
        return content
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def _table(table: Table, caption: str) -> str:
    titled = f"<caption>{escape(caption)}</caption>" if caption else ""
    heads = "".join(
        f'<th scope="col"{_class(column)}>'
        f'<button type="button">{_breakable(column.name)}</button></th>'
        for column in table.columns
    )
    rows = "\n".join(
        "<tr>" + "".join(map(_cell, row, table.columns)) + "</tr>" for row in table.rows
    )
    dense = ' class="dense"' if len(table.columns) > _DENSE else ""
    return (
        f'<div class="scroll"><table{dense}>{titled}<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )


def _cell(cell: Cell, column: Column) -> str:
    style, sort = "", ""
    if cell.tint:
        rgb = _BETTER_RGB if cell.tint > 0 else _WORSE_RGB
        opacity = _STRONGEST * min(abs(cell.tint), 1)
        style = f' style="background-color: rgb({rgb} / {opacity:.2f})"'
    if isinstance(cell.sort, float | int):
        value = cell.sort if math.isfinite(cell.sort) else math.copysign(1e308, cell.sort)
        sort = f' data-sort="{value:.9g}"'
    return f"<td{_class(column, cell.mark)}{sort}{style}>{escape(cell.text)}</td>"


def _breakable(name: str) -> str:
    """A task's name may go on in another line after an underscore."""
    return escape(name).replace("_", "_<wbr>")


def _class(column: Column, mark: str = "") -> str:
    names = " ".join(filter(None, ["number" if column.number else "", mark]))
    return f' class="{names}"' if names else ""


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.svg.encode()).decode()
    caption = escape(picture.caption)
    return (
        f'<figure><img src="data:image/svg+xml;base64,{data}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
