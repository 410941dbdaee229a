"""The server and its page, on a debug run's checkpoint: the token, bad requests, and a person in a real browser."""

import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from worldloop.core.errors import WorldloopError
from worldloop.play.make import find_simulator, make_play_session
from worldloop.play.server import TOKEN_HEADER, PlayServer

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture(scope="module")
def server(debug_run: Path) -> Iterator[PlayServer]:
    simulator = find_simulator(debug_run)
    server = PlayServer(lambda: make_play_session(debug_run, simulator, "cpu"))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join(20)
    server.close()


def ask(server: PlayServer, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def call(server: PlayServer, name: str, values: Any = None) -> tuple[int, dict[str, Any]]:
    body = json.dumps({} if values is None else values).encode()
    status, answer = ask(server, f"/api/{name}", body, **{TOKEN_HEADER: server.token})
    return status, json.loads(answer)


def test_a_game_over_http(server: PlayServer) -> None:
    status, state = call(server, "reset", {"start": 3})
    assert status == 200
    assert (state["task"], state["start"], state["now"], state["num_starts"]) == ("ToyPush-v1", 3, 0, 16)
    assert [a["name"] for a in state["actions"]] == ["dx", "dy"]
    assert state["frame"] == state["simulated"]["frame"]
    assert state["expected_psnr_db"] is None
    _, state = call(server, "step", {"action": [0.5, -0.5]})
    assert state["path"] == [0, 1]
    assert state["frame"] != state["simulated"]["frame"]
    assert state["simulated"]["psnr_db"] > 5
    _, state = call(server, "go_to", {"moment": 0})
    assert state["now"] == 0


def test_only_who_knows_the_token_may_play(server: PlayServer) -> None:
    assert ask(server, f"/?token={server.token}")[0] == 200
    assert ask(server, "/")[0] == 403
    assert ask(server, "/?token=guess")[0] == 403
    assert ask(server, "/api/state", b"{}")[0] == 403
    assert ask(server, "/api/state", b"{}", **{TOKEN_HEADER: "gu\u00e9ss"})[0] == 403
    assert ask(server, f"/?token={server.token}", Host="evil.example")[0] == 403  # a name that was made to resolve here
    assert ask(server, "/etc/passwd")[0] == 404


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("step", b'{"action": [NaN, 0]}', "'dx' is nan, allowed: -1 to 1"),
        ("step", b'{"action": [9, 0]}', "'dx' is 9, allowed: -1 to 1"),
        ("step", b'{"action": "up"}', "an action is 2 numbers: dx, dy"),
        ("step", b"{}", "an action is 2 numbers"),
        ("step", b"[]", "must be a JSON object"),
        ("step", b"{", "no JSON"),
        ("step", b'"' + b"x" * 70_000 + b'"', "too long"),
        ("reset", b'{"start": 99}', "start is 99, allowed: 0 to 15"),
        ("go_to", b'{"moment": 99}', "moment is 99, allowed: 0 to"),
        ("dance", b"{}", "unknown call 'dance'"),
    ],
)
def test_bad_requests_are_named_and_harmless(server: PlayServer, name: str, body: bytes, message: str) -> None:
    _, before = call(server, "state")
    status, answer = ask(server, f"/api/{name}", body, **{TOKEN_HEADER: server.token})
    assert status == 400
    assert message in json.loads(answer)["error"]
    assert call(server, "state")[1] == before


def test_a_browser_closed_mid_game_is_harmless(server: PlayServer) -> None:
    head = f"POST /api/step HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n{TOKEN_HEADER}: {server.token}\r\n"
    for rest in ('Content-Length: 23\r\n\r\n{"action": [0.1, 0.1]} ', "Content-Length: 500\r\n\r\n{"):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall((head + rest).encode())
    assert call(server, "state")[0] == 200


def test_a_taken_port_is_one_clear_error(server: PlayServer) -> None:
    with pytest.raises(WorldloopError, match=rf"cannot listen on 127\.0\.0\.1:{server.port} .*give another --port"):
        PlayServer(lambda: server.session, server.port)


def test_command_line(debug_run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from worldloop.__main__ import main

    for arguments, message in (
        ([str(tmp_path)], "checkpoint"),
        ([str(debug_run), "--device", "tpu"], "device 'tpu' is not known"),
        ([str(debug_run), "--config", str(tmp_path / "no.yaml")], "does not exist"),
        (
            [str(debug_run), "--config", str(CONFIGS / "pushcube_cpu.yaml")],
            "give the config that the world model was made with",
        ),
    ):
        assert main(["play", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    game = subprocess.Popen(
        [sys.executable, "-m", "worldloop", "play", str(debug_run), "--no-simulator"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert game.stdout is not None
    lines = [game.stdout.readline() for _ in range(4)]
    assert lines[0] == "no simulator beside it\n"
    assert lines[2].startswith("http://127.0.0.1:")
    game.send_signal(signal.SIGINT)
    assert game.wait(20) == 0
    assert "ended" in game.stdout.read()


def test_a_person_plays_in_a_browser(server: PlayServer) -> None:
    browser_module = pytest.importorskip("browser")
    if browser_module.find_chromium() is None:
        pytest.skip("no Chromium is installed")
    call(server, "reset", {"start": 0})
    with browser_module.Browser() as page:
        page.open(server.url)
        page.wait_for("document.getElementById('task')?.textContent === 'ToyPush-v1'")
        assert page.evaluate("document.querySelectorAll('#axes .axis').length") == 2
        picture = "document.getElementById('imagined').toDataURL()"
        before = page.evaluate(picture)
        page.press("ArrowRight", hold_s=0.3)
        page.wait_for("state.now >= 1")
        assert page.evaluate(picture) != before
        assert page.evaluate("document.getElementById('simulated').width") == 16
        page.evaluate("document.querySelector('#axes button').dispatchEvent(new PointerEvent('pointerdown'))")
        page.wait_for("state.path.length >= 3")
        page.evaluate("document.querySelector('#axes button').dispatchEvent(new PointerEvent('pointerup'))")
        page.wait_for("!busy")
        page.press("r")
        page.wait_for("state.now === 0")
        assert page.evaluate(picture) == before
        page.press("ArrowLeft", hold_s=0.3)
        page.wait_for("document.querySelectorAll('.branch').length === 2")
        page.wait_for("!busy")
        reached = page.evaluate("state.path.length")
        page.press("Backspace")
        page.wait_for(f"state.path.length === {reached - 1}")
        page.evaluate("document.querySelector('.branch button').click()")
        page.wait_for("state.now === 0")
        page.evaluate("call('step', {action: [7, 7]})")
        page.wait_for("document.getElementById('message').textContent.includes('allowed: -1 to 1')")
        assert page.screenshot()[:4] == b"\x89PNG"
