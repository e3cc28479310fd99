from __future__ import annotations

from pathlib import Path

import pytest

from uniformerv2.data.journal import Journal
from uniformerv2.errors import AnnotationError


def test_a_journal_goes_on_wherever_it_was_cut(tmp_path: Path) -> None:
    file = tmp_path / "journal"
    records = [{"path": 'a "b"\nc', "seconds": 0.1}, {"path": "ü", "of": [1, None]}]
    with Journal(file) as journal:
        for record in records:
            journal.add(record)
    whole = file.read_bytes()
    ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        file.write_bytes(whole[:cut])
        with Journal(file) as journal:
            journal.add({"path": "after"})
        with Journal(file) as journal:
            # a record without its line end is whole all the same
            complete = sum(cut >= end - 1 for end in ends)
            assert list(journal.records()) == [*records[:complete], {"path": "after"}], cut


def test_what_is_no_record_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "journal"
    file.write_bytes(b'[1]\n\xff\xfe\n"text"\n\n{"a": 1}\n{"b"')
    with Journal(file) as journal:
        assert list(journal.records()) == [{"a": 1}]


def test_nowhere_to_write_is_told(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="cannot be written"):
        Journal(tmp_path / "no" / "journal")
