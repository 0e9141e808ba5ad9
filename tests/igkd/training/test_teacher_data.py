"""What a teacher learns from."""

from pathlib import Path

import numpy as np
import pytest

from igkd.base.errors import UserError
from igkd.base.random_draws import validation_mask
from igkd.config.teacher import TeacherConfig
from igkd.training.teacher_data import teacher_task
from tests.helpers.pictures import encoded, write_parquet


def test_where_only_pictures_of_the_validation_split_can_be_used_nothing_can_be_learned(tmp_path: Path) -> None:
    labels = [number % 2 for number in range(60)]
    validation = validation_mask(np.array(labels))
    picture = encoded(np.full((16, 16, 3), 99, np.uint8))
    pictures = [picture if held_out else picture[:20] for held_out in validation]
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}-0.parquet", pictures, labels)
    config = TeacherConfig(images=f"parquet:{tmp_path}", out="o", network="lean:2:8x1", bad_images="skip")
    assert 0 < validation.sum() < 60
    with pytest.raises(UserError, match=r"0 training image\(s\) are too few"):
        teacher_task(config)
