"""HTTP dates, in the three forms that RFC 9110 has for them."""

from __future__ import annotations

import pytest

from understudy.proxy.http.heads import seconds_of

WHEN_S = 1_800_000_007.0


@pytest.mark.parametrize(
    "date", ["Fri, 15 Jan 2027 08:00:07 GMT", "Friday, 15-Jan-27 08:00:07 GMT", "Fri Jan 15 08:00:07 2027"]
)
@pytest.mark.usefixtures("far_from_greenwich")
def test_each_form_of_a_date_is_in_utc_wherever_it_is_read(date: str):
    assert seconds_of(date) == WHEN_S


@pytest.mark.parametrize("date", ["", "0", "soon", "Fri, 99 Jan 2027 08:00:07 GMT", "-1"])
def test_what_is_no_date_is_said_to_be_none(date: str):
    with pytest.raises(ValueError, match=r"Invalid|out of range"):
        seconds_of(date)
