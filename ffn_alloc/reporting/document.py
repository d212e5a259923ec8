"""A report before it is HTML or Markdown: sections of paragraphs, lists, tables and pictures."""

from dataclasses import dataclass

from ffn_alloc.reporting.drawing import Picture
from ffn_alloc.reporting.table import Table


@dataclass(frozen=True)
class Paragraph:
    text: str
    lead: bool = False  # the answer, set larger


@dataclass(frozen=True)
class Bullets:
    items: tuple[str, ...]
    warning: bool = False
    folded_under: str = ""  # a line that opens them by a click


@dataclass(frozen=True)
class TableBlock:
    caption: str
    table: Table
    folded: bool = False  # HTML opens it by a click


Block = Paragraph | Bullets | TableBlock | Picture


@dataclass(frozen=True)
class Section:
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    title: str
    sections: tuple[Section, ...]  # the first has no title of its own

    def pictures(self) -> list[Picture]:
        return [b for section in self.sections for b in section.blocks if isinstance(b, Picture)]
