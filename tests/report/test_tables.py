import csv
import io

import pytest
from epochs import epoch

from nnseg.report import describe_epoch, duration, history_csv


def test_the_line_of_an_epoch_says_what_a_person_wants_to_know() -> None:
    assert describe_epoch(epoch(12), 2040) == (
        "epoch 12/100 loss 0.412 dice 0.861 (Anterior .86 Posterior 1.00) 23.1 s wait 4% "
        "eta 34.0 min"
    )


def test_a_label_without_a_value_is_a_dash() -> None:
    assert "dice - (Anterior - Posterior 1.00)" in describe_epoch(epoch(12, None), 0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1.0 min"), (3599, "60.0 min"), (3600, "1.0 h")],
)
def test_a_length_of_time_is_said_in_the_unit_people_use(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_csv_has_a_row_an_epoch_and_a_column_a_label() -> None:
    rows = list(csv.DictReader(io.StringIO(history_csv([epoch(1), epoch(2, None)]))))
    assert rows[0] == {
        "epoch": "1",
        "lr": "0.0094",
        "loss": "0.4123",
        "validation_loss": "-0.51",
        "dice": "0.861",
        "dice_average": "0.861",
        "dice_Anterior": "0.861",
        "dice_Posterior": "1",
        "seconds": "23.140",
        "wait_share": "0.0430",
    }
    assert (rows[1]["epoch"], rows[1]["dice"], rows[1]["dice_Anterior"]) == ("2", "", "")


def test_the_csv_of_no_epochs_is_its_heading() -> None:
    assert history_csv([]).count("\n") == 1
