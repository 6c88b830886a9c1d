"""json-file: blocks are read in runs, whatever stands between the lines of one."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from moorage_guest.logs.journal import StreamState
from moorage_guest.logs.jsonfile import JsonFile, to_bytes
from moorage_guest.logs.records import cut

BASE = 1_700_000_000_000_000_000
TEXTS = (
    b"plain\n",
    b"\n",
    b'a "quote"\n',
    b"back\\slash\\n\n",
    b"tab\t\xff\n",
    b"no end",
    b"x" * 3000 + b"\n",
    b'","stream":"stdout","time":"\n',
)
FOREIGN = (b"{\n", b"\n", b'{"log":"other\\n","stream":"stdout","time":"2023-01-01T00:00:00Z"}\n', b'{"time":"2023-01-01T00:00:00Z","log":"turned\\n"}\n', b'{"log":"cut","stream":"std\n')  # fmt: skip
writes = st.tuples(
    st.sampled_from((1, 2)), st.integers(0, 2), st.lists(st.sampled_from(TEXTS), min_size=1, max_size=6), st.integers(1, 40)
)  # fmt: skip


def one_by_one(block: bytes) -> list[tuple[int, bytes]]:
    """What any reader of JSON lines sees."""
    found = []
    for line in block.split(b"\n")[:-1]:
        try:
            record = json.loads(line)
            found.append((2 if record.get("stream") == "stderr" else 1, to_bytes(record["log"])))
        except (ValueError, KeyError):
            continue
    return found


def joined(parts: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """The same with neighbours of one stream put together."""
    out: list[tuple[int, bytes]] = []
    for stream, data in parts:
        if out and out[-1][0] == stream:
            out[-1] = (stream, out[-1][1] + data)
        else:
            out.append((stream, data))
    return out


@settings(max_examples=300, deadline=None)
@given(st.lists(writes | st.sampled_from(FOREIGN), max_size=8))
def test_runs_say_what_the_lines_say(parts: list[tuple[int, int, list[bytes], int] | bytes]) -> None:
    block = b""
    states = {1: StreamState(), 2: StreamState()}
    for part in parts:
        if isinstance(part, bytes):
            block += part
            continue
        stream, later, texts, times = part
        piece = cut(states[stream], b"".join(texts) * times)
        states[stream] = piece.state
        block += JsonFile().encode(stream, piece, BASE + later)
    runs = list(JsonFile().decode(block))
    assert joined([(run.stream, run.data) for run in runs]) == joined(one_by_one(block))
    assert [run.end for run in runs] == sorted({run.end for run in runs})
    assert all(block[run.end - 1 : run.end] == b"\n" for run in runs)
