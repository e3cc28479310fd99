"""XML of others."""

from __future__ import annotations

from pathlib import Path

import pytest

from spans.rows import text
from uniformerv2.errors import AnnotationError
from uniformerv2.spans.formats.label_file import open_label_file

BOMB = """<?xml version="1.0"?>
<!DOCTYPE lolz [<!ENTITY lol "lol"><!ENTITY lol2 "&lol;&lol;&lol;">]>
<annotations><version>&lol2;</version></annotations>"""
FETCH = '<?xml version="1.0"?>\n<!DOCTYPE annotations SYSTEM "http://127.0.0.1:9/x.dtd">\n<annotations/>'
READS = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>'


@pytest.mark.parametrize("content", [BOMB, FETCH, READS])
def test_a_document_type_is_refused_by_line(tmp_path: Path, content: str) -> None:
    line = content[: content.index("<!DOCTYPE")].count("\n") + 1
    with pytest.raises(AnnotationError, match=rf"x\.xml, line {line}: XML with a document type"):
        open_label_file(text(tmp_path / "x.xml", content))


@pytest.mark.parametrize("content", ["<a><b></a>", "<a>", "<a>&unknown;</a>", "<a/><b/>", "<a>\x01</a>"])
def test_damaged_xml_is_named_by_line(tmp_path: Path, content: str) -> None:
    with pytest.raises(AnnotationError, match=r"x\.xml, line 2: cannot be read as XML"):
        open_label_file(text(tmp_path / "x.xml", '<?xml version="1.0"?>\n' + content))


def test_depth_costs_nothing(tmp_path: Path) -> None:
    root = open_label_file(text(tmp_path / "x.xml", "<a>" * 50_000 + "</a>" * 50_000)).xml
    assert root is not None
    assert root.tag == "a"
