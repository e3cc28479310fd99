"""What a command cannot do is one line on stderr, and no file is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers import Run, assert_error_line, files_below

NEAREST = "'b16-k400-9x224', did you mean b16-k400-8x224"
REFUSED = [  # what is said, parts divided by commas
    ("evaluate CHECKPOINT empty.csv", "line 2: the interval from 0.5 s to 0.5 s is empty"),
    ("evaluate CHECKPOINT videos.csv --output absent/b.json", "absent"),
    ("evaluate CHECKPOINT videos.csv --output a.csv --predictions a.csv", "one file cannot hold two things"),
    ("evaluate CHECKPOINT videos.csv --output a.json --crops 2", "2 crops"),
    ("evaluate CHECKPOINT videos.csv --output a.json --batch-size 0", "batch size"),
    ("evaluate CHECKPOINT videos.csv --output a.json --device nonsense", "nonsense"),
    ("evaluate CHECKPOINT videos.csv --output a.json --head k400", "k400, blue, green, red"),
    ("features CHECKPOINT videos.csv -o a.csv", ".npz"),
    ("features CHECKPOINT videos.csv -o absent/a.npz", "absent"),
    ("features CHECKPOINT videos.csv -o a.npz --stride-seconds 1", "window"),
    ("features CHECKPOINT videos.csv -o a.npz --window-seconds -1", "-1"),
    ("features CHECKPOINT videos.csv -o a.npz --batch-size 0", "batch size"),
    ("features CHECKPOINT absent.mp4 -o a.npz", "absent.mp4"),
    ("predict CHECKPOINT", "no videos"),
    ("predict CHECKPOINT VIDEO --top-k 0", "top_k"),
    ("predict CHECKPOINT VIDEO --batch-size 0", "batch"),
    ("predict CHECKPOINT VIDEO --head k400", "k400, blue, green, red"),
    ("timeline CHECKPOINT VIDEO -o new --window-seconds 0", "window"),
    ("timeline CHECKPOINT VIDEO -o new --stride-seconds -1", "stride"),
    ("timeline CHECKPOINT VIDEO -o new --top-k 0", "top_k"),
    ("timeline CHECKPOINT VIDEO VIDEO -o new", "2 videos would be written to new/red0.csv"),
    ("stream CHECKPOINT absent.mp4", "absent.mp4"),
    ("stream CHECKPOINT VIDEO --window-frames 20", "ended after 12 frames, 0 dropped, but a window has 20"),
    ("stream CHECKPOINT VIDEO --stride-frames 0", "stride_frames"),
    ("stream CHECKPOINT VIDEO --top-k 0", "top_k"),
    ("stream CHECKPOINT http://127.0.0.1:9/", "cannot be opened"),
    ("train COLOURS -o run TINY --epochs 0", "epochs"),
    ("train COLOURS -o run TINY --holdout 1.5", "holdout"),
    ("train COLOURS -o run TINY --size 33", "33"),
    ("train COLOURS -o run TINY --device nonsense", "nonsense"),
    ("train COLOURS -o run TINY --resume", "recipe.json"),
    ("train COLOURS -o run TINY --resume --overwrite", "contradict"),
    ("train COLOURS -o run TINY --model B/16", "--arm"),
    ("train COLOURS -o run TINY --global-after 7", "7"),
    ("train COLOURS -o run TINY --crop-area 0.9 0.1", "crop_area"),
    ("train COLOURS -o run TINY --num-ops -1", "num_ops"),
    ("train COLOURS -o run TINY --flip-labels left", "flip_labels must be, got 'left'"),
    ("train COLOURS -o run TINY --flip-labels left,right", "flip_labels left,right: no name of a class"),
    ("train COLOURS -o run TINY --flip-labels red,blue --no-flip", "flip_labels red,blue needs mirrored clips"),
    ("train COLOURS -o run TINY --reverse-labels red", "reverse_labels red: 'red' is no pair, 'blue', 'green', 'red'"),
    ("train COLOURS -o run TINY --reverse-labels red,blue --num-frames 1", "reverse_labels needs, got num_frames 1"),
    ("train COLOURS -o run TINY --holdout-list absent.txt", "absent.txt"),
    ("train one -o run TINY", "one"),
    ("train absent -o run TINY", "absent"),
    ("train empty -o run TINY", "empty"),
    ("train videos -o run --recipe b16-k400-9x224", NEAREST),
    ("train videos -o run --recipe b16-k400-8x224 --batch-size 6 --repeats 4", "divisible, got 6"),
    ("train videos -o run --recipe b16-k400-8x224 --model B/16 --arm vit", "--arm, --model, vit"),
    ("recipes --show b16-k400-9x224", NEAREST),
    ("models --dataset k500", "'k500', kinetics400, something_something_v2"),
    ("convert nothing.pth new --to ours", "nothing.pth: an unknown format"),
    ("benchmark Ti/16 --batch-sizes 2", "batch sizes that begin with 1"),
    ("data check videos.csv --num-frames 0", "at least 1"),
    ("data check videos.csv --output no/clean.csv", "no folder"),
    ("data check videos.csv --root /nowhere -o x/y", "no folder"),
    ("data check none.csv", "no such folder or manifest"),
]


@pytest.mark.parametrize(("command", "said"), REFUSED)
@pytest.mark.usefixtures("unhurried")
def test_a_command_is_refused(
    uniformerv2: Run,
    checkpoint: Path,
    colours: Path,
    video: Path,
    tiny: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("http_proxy", raising=False)
    Path("videos.csv").write_text(f"path,label\n{video},red\n")
    Path("empty.csv").write_text(f"path,label,start,end\n{video},red,0.5,0.5\n")
    Path("nothing.pth").write_bytes(b"nothing")
    Path("empty").mkdir()
    Path("one").mkdir()
    Path("one", "red").symlink_to(colours / "red")
    before = files_below(tmp_path)
    given = {"CHECKPOINT": [checkpoint], "COLOURS": [colours], "VIDEO": [video], "TINY": tiny}
    status, output, errors = uniformerv2(*(part for word in command.split() for part in given.get(word, [word])))
    assert (status, output) == (2, "")
    *notes, error = errors.splitlines(keepends=True)
    assert not notes or (command.startswith(("timeline", "stream")) and notes[0].startswith("note: "))
    assert_error_line(error, *said.split(", "))
    assert files_below(tmp_path) == before
    assert not Path("new").exists()
    assert not Path("run").exists()
