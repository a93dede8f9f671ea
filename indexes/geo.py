"""Which points of the earth lie in a box, a circle or a polygon, as Qdrant decides: a border belongs to none of them.

Degrees and metres. The earth is a ball of the mean radius 6 371 008.8 m (IUGG), distances are haversine; the sides of a
polygon are straight in longitude and latitude. Raises UnknownFilter for a shape that Qdrant would not take either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias, cast

from understudy.indexes.faults import UnknownFilter

EARTH_RADIUS_M: Final = 6_371_008.8
CORNERS_MAX: Final = 10_000
"""The most corners of one ring: each point is compared with every side."""

Place: TypeAlias = tuple[float, float]
"""Longitude and latitude."""
Inside: TypeAlias = Callable[[Place], bool]


def place_of(value: Any) -> Place | None:
    """The place that a payload's value stands for; None if it is no object with numbers for `lon` and `lat`."""
    if not isinstance(value, dict):
        return None
    held = cast("dict[str, Any]", value)
    lon, lat = held.get("lon"), held.get("lat")
    return (cast("float", lon), cast("float", lat)) if _is_finite(lon) and _is_finite(lat) else None


def in_box(json: object) -> Inside:
    """{top_left, bottom_right}; a box whose left side is east of its right one goes round by the antimeridian."""
    fields = _fields(json, "geo_bounding_box", {"top_left", "bottom_right"})
    left, top = _asked_place(fields["top_left"], "geo_bounding_box.top_left")
    right, bottom = _asked_place(fields["bottom_right"], "geo_bounding_box.bottom_right")

    def inside(place: Place) -> bool:
        lon, lat = place
        is_between = (lon > left or lon < right) if left > right else left < lon < right
        return is_between and bottom < lat < top

    return inside


def in_circle(json: object) -> Inside:
    """{center, radius}, in metres."""
    fields = _fields(json, "geo_radius", {"center", "radius"})
    center = _asked_place(fields["center"], "geo_radius.center")
    radius_m = fields["radius"]
    if not _is_finite(radius_m) or cast("float", radius_m) < 0:
        raise UnknownFilter(f"geo_radius.radius must be a number of metres, got {radius_m!r}")
    within_m = float(cast("float", radius_m))
    return lambda place: metres_apart(place, center) < within_m


def in_polygon(json: object) -> Inside:
    """{exterior, interiors}: rings of {points}, whose last is their first; what is in an interior is a hole."""
    fields = _fields(json, "geo_polygon", {"exterior", "interiors"}, needed={"exterior"})
    exterior = _ring(fields["exterior"], "geo_polygon.exterior")
    said = fields.get("interiors")
    if said is not None and not isinstance(said, list):
        raise UnknownFilter("geo_polygon.interiors must be a list")
    holes = [_ring(ring, "geo_polygon.interiors") for ring in cast("list[object]", said or [])]

    def inside(place: Place) -> bool:
        return _is_in_ring(place, exterior, is_border_in=False) and not any(
            _is_in_ring(place, hole, is_border_in=True) for hole in holes
        )

    return inside


def metres_apart(one: Place, other: Place) -> float:
    """The great-circle distance of two places, in metres."""
    lon_1, lat_1, lon_2, lat_2 = map(math.radians, (*one, *other))
    chord = math.sin((lat_2 - lat_1) / 2) ** 2
    chord += math.cos(lat_1) * math.cos(lat_2) * math.sin((lon_2 - lon_1) / 2) ** 2
    # rounding may leave a hair more than 1 for places opposite each other
    return EARTH_RADIUS_M * 2 * math.asin(math.sqrt(min(1.0, chord)))


def _is_in_ring(place: Place, ring: list[Place], *, is_border_in: bool) -> bool:
    """By counting the sides that a ray crosses; a place on a side itself is on the border."""
    lon, lat = place
    is_in = False
    for (lon_1, lat_1), (lon_2, lat_2) in zip(ring, [ring[-1], *ring[:-1]], strict=True):
        is_on_line = lon * (lat_1 - lat_2) + lon_1 * (lat_2 - lat) + lon_2 * (lat - lat_1) == 0
        if is_on_line and (lat_1 - lat) * (lat_2 - lat) <= 0 and (lon_1 - lon) * (lon_2 - lon) <= 0:
            return is_border_in
        if (lon_1 > lon) != (lon_2 > lon) and lat < (lat_2 - lat_1) * (lon - lon_1) / (lon_2 - lon_1) + lat_1:
            is_in = not is_in
    return is_in


def _ring(json: object, what: str) -> list[Place]:
    """The corners of a ring, each once."""
    points = _fields(json, what, {"points"})["points"]
    if not isinstance(points, list) or not 4 <= len(cast("list[object]", points)) <= CORNERS_MAX:
        raise UnknownFilter(f"{what}.points must be a list of 4 to {CORNERS_MAX} corners")
    ring = [_asked_place(point, what) for point in cast("list[object]", points)]
    if ring[0] != ring[-1]:
        raise UnknownFilter(f"{what}: the last point must be the first")
    return ring[:-1]


def _asked_place(json: object, what: str) -> Place:
    fields = _fields(json, what, {"lon", "lat"})
    place = place_of(fields)
    if place is None or not (-180 <= place[0] <= 180 and -90 <= place[1] <= 90):
        raise UnknownFilter(f"{what} must have a lon in [-180, 180] and a lat in [-90, 90]")
    return place


def _fields(json: object, what: str, known: set[str], needed: set[str] | None = None) -> Mapping[str, object]:
    if not isinstance(json, dict):
        raise UnknownFilter(f"{what} must be an object, got {type(json).__name__}")
    fields = cast("dict[str, object]", json)
    if not known >= fields.keys() >= (known if needed is None else needed):
        raise UnknownFilter(f"{what} must say {', '.join(sorted(known))}")
    return fields


def _is_finite(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
