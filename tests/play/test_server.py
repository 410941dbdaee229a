"""The server and its page, on a debug run's checkpoint: the token, bad requests, and a person in a real browser."""

import base64
import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from summing import CALIBRATIONS, CONFIG, SEVERAL, Summing, make_session

from worldloop.core.errors import WorldloopError
from worldloop.play.make import find_simulator, make_play_session
from worldloop.play.server import TOKEN_HEADER, PlayServer
from worldloop.play.session import NUM_STATES, PlaySession
from worldloop.simulators.toy.simulator import ToySimulator

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture(scope="module")
def server(debug_run: Path) -> Iterator[PlayServer]:
    simulator = find_simulator(debug_run)
    with serve(lambda: make_play_session(debug_run, simulator, "cpu")) as server:
        yield server


@contextlib.contextmanager
def serve(make_session: Callable[[], PlaySession]) -> Iterator[PlayServer]:
    server = PlayServer(make_session)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:  # also where a test fails: the thread would keep the process alive
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
    assert (state["task"], state["start"], state["now"], len(state["starts"])) == ("ToyPush-v1", 3, 0, 16)
    assert state["starts"][3] == {"task": "ToyPush-v1", "instruction": state["instruction"]}
    assert state["cameras"] == [{"name": "base_camera", "height": 16, "width": 16}]
    assert state["actions"] == [
        {"name": "dx", "kind": "axis", "low": -1.0, "high": 1.0, "labels": ["left", "right"], "rest": 0.0},
        {"name": "dy", "kind": "axis", "low": -1.0, "high": 1.0, "labels": ["up", "down"], "rest": 0.0},
    ]
    assert len(base64.b64decode(state["frames"]["base_camera"])) == 16 * 16 * 3
    assert state["frames"] == state["simulated"]["frames"]
    assert state["simulated"]["psnr_db"] == {"base_camera": None}
    assert state["expected_psnr_db"] is None
    _, state = call(server, "step", {"action": [0.5, -0.5]})
    assert state["path"] == [0, 1]
    assert state["frames"] != state["simulated"]["frames"]
    assert state["simulated"]["psnr_db"]["base_camera"] > 5
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
        buttons = "Array.from(document.querySelectorAll('#axes button'), (b) => b.textContent)"
        assert page.evaluate(buttons) == ["left ←", "right →", "up ↑", "down ↓", "wait ."]
        picture = "document.getElementById('imagined-base_camera').toDataURL()"
        before = page.evaluate(picture)
        page.press("ArrowRight", hold_s=0.3)
        page.wait_for("state.now >= 1")
        assert page.evaluate(picture) != before
        assert page.evaluate("document.getElementById('simulated-base_camera').width") == 16
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


def test_a_page_of_targets_waits_where_the_robot_is() -> None:
    """A recording of absolute actions: its sliders begin at its first action, and waiting keeps them there."""
    browser_module = pytest.importorskip("browser")
    if browser_module.find_chromium() is None:
        pytest.skip("no Chromium is installed")
    spec = ToySimulator.make_spec(CONFIG)
    robot = replace(spec.robot, control_mode="recorded", action_low=(0.0, 0.0), action_high=(4.0, 10.0))
    world_model = Summing(replace(spec, robot=replace(robot, action_names=("elbow", "wrist"), action_labels=())))
    starts, first = world_model.make_starts(["ToyPush-v1"] * 2), torch.tensor([[1.0, 2.5], [3.0, 5.0]])

    def make_session() -> PlaySession:
        return PlaySession(world_model, CALIBRATIONS, starts, start_actions=first)  # type: ignore[arg-type]

    with serve(make_session) as server, browser_module.Browser() as page:
        page.open(server.url)
        page.wait_for("document.getElementById('slider0') !== null")
        shown = "[0, 1].map((i) => Number(document.getElementById('target' + i).textContent))"
        assert page.evaluate(shown) == [1, 2.5]
        page.press(".", hold_s=0.3)
        page.wait_for("state.now >= 1 && !busy")
        assert server.session.moments[1].state["position"].tolist() == [2.0]  # two actions of 1
        slider = "document.getElementById('slider0')"
        reached = page.evaluate("state.now")
        page.evaluate(f"({slider}.value = 1, {slider}.oninput())")
        page.wait_for(f"state.now > {reached}")
        page.evaluate(f"{slider}.onchange()")
        page.wait_for("!busy")
        assert page.evaluate(shown) == [4, 2.5]
        assert server.session.moments[-1].action == pytest.approx((1.0, -0.5))
        page.press("r")
        page.wait_for(f"state.now === 0 && {shown}[0] === 1")
        page.evaluate("(document.getElementById('start').value = 1, document.getElementById('start').onchange())")
        page.wait_for(f"state.start === 1 && {shown}[0] === 3 && {shown}[1] === 5")


def test_a_game_of_two_cameras_and_two_tasks_over_http() -> None:
    with serve(lambda: make_session(SEVERAL)) as server:
        _, state = call(server, "state")
        assert [(c["name"], c["height"], c["width"]) for c in state["cameras"]] == [
            ("base_camera", 16, 16), ("hand_camera", 12, 12),
        ]  # fmt: skip
        assert [start["task"] for start in state["starts"]] == ["ToyPush-v1"] * 16 + ["ToyReach-v1"] * 16
        assert (state["task"], state["threshold"]) == ("ToyPush-v1", 0.5)
        call(server, "reset", {"start": NUM_STATES + 1})
        _, state = call(server, "step", {"action": [0.5, 0.0]})
        assert (state["task"], state["threshold"]) == ("ToyReach-v1", 0.7)
        assert state["instruction"] == state["starts"][NUM_STATES + 1]["instruction"]
        sizes = {name: len(base64.b64decode(frame)) for name, frame in state["frames"].items()}
        assert sizes == {"base_camera": 16 * 16 * 3, "hand_camera": 12 * 12 * 3}
        assert state["simulated"]["frames"].keys() == state["simulated"]["psnr_db"].keys() == sizes.keys()


def test_a_page_of_two_cameras_and_two_tasks() -> None:
    browser_module = pytest.importorskip("browser")
    if browser_module.find_chromium() is None:
        pytest.skip("no Chromium is installed")
    with serve(lambda: make_session(SEVERAL)) as server, browser_module.Browser(1280, 900) as page:
        page.open(server.url)
        page.wait_for("document.getElementById('task')?.textContent === 'ToyPush-v1'")
        sizes = {
            "imagined-base_camera": 16,
            "simulated-base_camera": 16,
            "imagined-hand_camera": 12,
            "simulated-hand_camera": 12,
        }
        page.evaluate("call('step', {action: [0.5, 0]})")
        page.wait_for("state.now === 1")
        for name, size in sizes.items():
            assert page.evaluate(f"document.getElementById('{name}').width") == size
        context = "document.getElementById('imagined-hand_camera').getContext('2d')"
        pixel = f"Array.from({context}.getImageData(11, 11, 1, 1).data)"
        assert page.evaluate(pixel) == [130, 130, 130, 255]
        groups = "Array.from(document.querySelectorAll('#start optgroup'), (g) => [g.label, g.children.length])"
        assert page.evaluate(groups) == [["ToyPush-v1", 16], ["ToyReach-v1", 16]]
        page.evaluate("document.getElementById('start').value = 17")
        page.evaluate("document.getElementById('start').onchange()")
        page.wait_for("document.getElementById('task').textContent === 'ToyReach-v1'")
        assert page.evaluate("document.getElementById('instruction').textContent === state.starts[17].instruction")
        for width in (1280, 400):
            page.resize(width, 900)
            assert page.evaluate("innerWidth") == width
            assert page.evaluate("document.documentElement.scrollWidth") <= width
