"""The virtual clock stands while the kernel has something to deliver; nobody is left over who has yet to hear it."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from tests.kit.virtual_clock import packets_in_hand, run


async def test_what_the_kernel_has_in_hand_is_waited_for_before_the_clock_jumps(monkeypatch: pytest.MonkeyPatch):
    reader, writer = socket.socketpair()
    looked: list[bool] = []

    def packets_in_hand() -> bool:
        # they are delivered while it is looked for the third time, as by a thread of the kernel that had no core
        looked.append(True)
        if len(looked) == 3:
            writer.send(b"x")
        return len(looked) < 3

    monkeypatch.setattr("tests.kit.virtual_clock.packets_in_hand", packets_in_hand)
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    reader.setblocking(False)
    loop.add_reader(reader, came.set)
    began = loop.time()
    async with asyncio.timeout(1.0):
        await came.wait()
    assert (len(looked), loop.time()) == (3, began)
    loop.remove_reader(reader)
    reader.close()
    writer.close()


def test_a_task_that_ends_as_soon_as_it_hears_what_was_sent_is_not_left_over(monkeypatch: pytest.MonkeyPatch):
    reader, writer = socket.socketpair()
    heard: list[bytes] = []
    looked: list[bool] = []

    def packets_in_hand() -> bool:
        looked.append(True)
        if len(looked) == 3:
            writer.close()
        return len(looked) < 3

    async def story() -> None:
        reader.setblocking(False)

        async def serves() -> None:
            heard.append(await asyncio.get_running_loop().sock_recv(reader, 1))

        asyncio.get_running_loop().create_task(serves(), name="serves")

    monkeypatch.setattr("tests.kit.virtual_clock.packets_in_hand", packets_in_hand)
    run(story())
    assert heard == [b""]
    reader.close()


def test_a_kernel_that_says_nothing_of_its_packets_has_none_in_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    told = tmp_path / "softnet_stat"
    monkeypatch.setattr("tests.kit.virtual_clock.SOFTNET", told)
    for text, expected in (
        (None, False),
        ("00000001 00000000\n", False),
        ("0b896f2a " + "00000000 " * 14 + "\n", False),
        ("0b896f2a " + "00000000 " * 10 + "0000001a 00000000\n", True),
    ):
        if text is not None:
            told.write_text(text)
        assert packets_in_hand() is expected
