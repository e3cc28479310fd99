"""XML of others, read safely: nothing is fetched, and a file that declares entities or document types is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from uniformerv2.errors import AnnotationError


@dataclass
class Element:
    """An element, and where it begins; xml.etree knows no lines."""

    tag: str
    line: int
    attributes: dict[str, str] = field(default_factory=dict)
    children: list[Element] = field(default_factory=list)
    text: str = ""

    def all(self, *path: str) -> Iterator[Element]:
        """The elements below it that this path of tags leads to."""
        if not path:
            yield self
            return
        for child in self.children:
            if child.tag == path[0]:
                yield from child.all(*path[1:])

    def text_of(self, *path: str) -> str:
        """The text of the first of them, "" where there is none."""
        return next((element.text.strip() for element in self.all(*path)), "")


def parse_xml(file: Path, text: str) -> Element:
    """The root of a document.

    Raises:
        AnnotationError: no well-formed XML, or one with a document type; names the line.
    """
    parser = expat.ParserCreate("utf-8")  # which the text was read as, whatever it declares
    parser.buffer_text = True
    document = Element("", 0)
    open_elements = [document]

    def start(tag: str, attributes: dict[str, str]) -> None:
        element = Element(tag, parser.CurrentLineNumber, attributes)
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def end(_tag: str) -> None:
        open_elements.pop()

    def characters(data: str) -> None:
        open_elements[-1].text += data

    def refuse(*_: object) -> None:
        raise AnnotationError(
            f"{file}, line {parser.CurrentLineNumber}: XML with a document type (<!DOCTYPE ...>) is not read, since it "
            "may unpack to any size; remove it"
        )

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = characters, refuse
    try:
        parser.Parse(text.encode("utf-8"), True)
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code)
        raise AnnotationError(f"{file}, line {error.lineno}: cannot be read as XML: {reason}") from None
    return document.children[0]
