"""Dates of images come from a real calendar; dates of a search are understood or refused."""

import io
import time

import pytest
from PIL import Image

from tests.support.odd_images import noise
from vlm.errors import InputError
from vlm.index.dates import capture_time, date_limit, is_calendar_time

SOUND = "2021:03:04 05:06:07"


def taken(original: object = None, digitized: object = None, changed: object = None) -> str | None:
    """The date of a JPEG with these EXIF tags."""
    exif, file = Image.Exif(), io.BytesIO()
    for tag, value in ((0x9003, original), (0x9004, digitized)):
        if value is not None:
            exif.get_ifd(0x8769)[tag] = value
    if changed is not None:
        exif[0x0132] = changed
    noise(8, 8).save(file, "JPEG", exif=exif)
    return capture_time(Image.open(file).getexif())


@pytest.mark.parametrize(
    ("stamp", "expected"),
    [
        (SOUND, "2021-03-04 05:06:07"),
        (" 2021:3:4 5:6:7 \0", "2021-03-04 05:06:07"),  # EXIF 2.3: "YYYY:MM:DD HH:MM:SS"; not all keep to it
        ("2019-07-01 10:00:00", "2019-07-01 10:00:00"),  # ISO
        ("2019-07-01T10:00:00", "2019-07-01 10:00:00"),
        ("2019:07:01 10:00:00+09:00", "2019-07-01 10:00:00"),  # the camera's own time
        ("2019-07-01T10:00:00.250Z", "2019-07-01 10:00:00"),
        ("2019:07:01", "2019-07-01 00:00:00"),
        ("1839:08:19 12:00:00", "1839-08-19 12:00:00"),  # the year of the daguerreotype
    ],
)
def test_a_date_of_the_calendar_is_read_in_any_of_its_forms(stamp: str, expected: str):
    assert taken(stamp) == taken(None, stamp) == taken(None, None, stamp) == expected
    assert is_calendar_time(expected)


NONSENSE = [
    *("0000:00:00 00:00:00", "    :  :     :  :  ", "yesterday", ""),  # EXIF 2.3: unknown is blank
    *("2024:13:01 00:00:00", "2023:02:29 12:00:00", "2024:04:31 12:00:00"),  # no calendar has them
    *("99999:01:01 00:00:00", "0001:01:01 00:00:00"),
    *("2024:01:01 24:00:01", "2024:01:01 12:60:00"),
]


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_a_date_of_no_calendar_gives_way_to_the_next_tag(nonsense: str):
    assert taken(nonsense, SOUND) == taken(nonsense, None, SOUND) == taken(nonsense, nonsense, SOUND)
    assert taken(nonsense, SOUND) == "2021-03-04 05:06:07"
    assert taken(nonsense, nonsense, nonsense) is None
    assert not is_calendar_time(nonsense)


def test_the_original_date_counts_more_than_the_digitized_and_that_more_than_the_changed():
    later, last = "2022:08:09 10:11:12", "2023:01:01 00:00:00"
    assert taken(SOUND, later, last) == "2021-03-04 05:06:07"
    assert taken(None, later, last) == "2022-08-09 10:11:12"
    assert taken(None, None, last) == "2023-01-01 00:00:00"
    assert taken() is None


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("2024", "2024"),
        ("2024-02", "2024-02"),
        ("2024-02-29", "2024-02-29"),
        ("20240229", "2024-02-29"),
        ("2024-05-01 12", "2024-05-01 12"),
        ("2024-05-01T12:00", "2024-05-01 12:00"),
        ("2024-05-01T12:00:30.5", "2024-05-01 12:00:30"),
    ],
)
def test_a_limit_keeps_as_much_of_the_date_as_was_given(text: str, limit: str):
    assert date_limit(text) == limit


@pytest.mark.parametrize("zone", ["Z", "+00:00", "+0000"])
def test_a_time_zone_is_converted_to_local_time(zone: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert date_limit(f"2024-05-01T20:00:00{zone}") == "2024-05-02 05:00:00"
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    "text",
    [
        *("", "24", "2024-5", "2024-05-1", "2024/05/01", "2024-05-01T", "2024\n", "２０２４", "May", "x" * 100_000),
        *("2024-13", "2024-00", "2023-02-29", "2024-04-31", "20241301", "0000", "2024-05-01T25:00"),
    ],
)
def test_what_is_no_date_is_refused_in_one_short_line(text: str):
    with pytest.raises(InputError) as refused:
        date_limit(text)
    assert repr(text[:40]) in str(refused.value)
    assert len(str(refused.value)) < 200
