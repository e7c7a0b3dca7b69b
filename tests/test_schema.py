import dataclasses

import pytest

from onecycle.records import EpochRecord
from onecycle.schema import COUNT, NAME, SHARE, Many, Maybe, Misfit, check, of_record, parse_json

EPOCH = dataclasses.asdict(EpochRecord(1, 0.1, 2.0, 0.5, None, None, 1.5, 0.0))
TABLE = {"name": NAME, "share?": Maybe(SHARE), "rows": Many(of_record(EpochRecord), least=1)}
GOOD = {"name": "Katze 猫", "share": None, "rows": [EPOCH], "later": {"more": [1]}}


def test_what_fits_is_taken_with_names_of_later_versions():
    check(GOOD, TABLE)
    check({name: value for name, value in GOOD.items() if name != "share"}, TABLE)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"name": ""}, "name is ''"),
        ({"name": "a\u202eb"}, "name is"),
        ({"name": "x" * 5_000_000}, "name is"),
        ({"share": True}, "share is True"),
        ({"share": float("nan")}, "share is nan"),
        ({"rows": []}, "rows is"),
        ({"rows": {}}, "rows is"),
        ({"rows": [EPOCH, EPOCH | {"train_accuracy": "x"}]}, "rows row 2.train_accuracy is 'x'"),
        ({"rows": [EPOCH | {"epoch": 10**5000}]}, "rows row 1.epoch is too large to show"),
        ({"rows": [EPOCH | {"train_seconds": -1}]}, "rows row 1.train_seconds is -1"),
        ({"rows": [{"epoch": 1}]}, "rows row 1.lr is missing"),
    ],
)
def test_what_does_not_fit_is_named_in_a_short_line(change, place):
    with pytest.raises(Misfit) as caught:
        check(GOOD | change, TABLE)
    said = str(caught.value)
    assert said.startswith(place) and len(said) < 250 and said.isprintable()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xff", b"NaN", b"[Infinity]", b"1e999", b"9" * 10_000, b"[" * 100_000,
        b"[" * 60 + b"]" * 60, b'{"a": 1, "a": 2}', b'["\\ud800"]', b'{"\\ud800": 1}',
    ],
)  # fmt: skip
def test_what_is_no_json_is_refused(content):
    with pytest.raises(Misfit):
        parse_json(content)


def test_json_is_taken_with_a_mark_of_its_encoding():
    assert parse_json("\ufeff[1, 2.5, null, {}]".encode()) == [1, 2.5, None, {}]
    check(parse_json(b"3"), COUNT)
