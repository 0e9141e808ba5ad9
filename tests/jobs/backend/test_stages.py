"""What a stage says while a part takes long."""

import pytest

from jobs.backend import stages


def test_a_slow_part_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 10, 29, 31, 40, 62, 90])
    monkeypatch.setattr(stages.time, "monotonic", lambda: next(clock))
    tell = stages.telling(3, 20)
    for done in (1, 5, 7, 9, 15, 20):
        tell(done)
    assert capsys.readouterr().out.splitlines() == [
        "precompute: part 3: 7/20 images, 0.2 images/s",
        "precompute: part 3: 15/20 images, 0.2 images/s",
    ]
