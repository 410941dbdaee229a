"""The web server of a game: a page and four calls, on loopback only, protected by a random token.

    GET  /?token=...      the page
    POST /api/state       {} -> the state, see `describe`
    POST /api/reset       {"start": int}
    POST /api/step        {"action": [A floats in -1..1]}
    POST /api/go_to       {"moment": int}

Calls carry the token in the header ``X-Worldloop-Token``. They answer with the state, or with {"error": ...} and status
400. All work is done in one thread, because a renderer belongs to the thread that made it. A browser that disconnects
does no harm.
"""

from __future__ import annotations

import base64
import hmac
import json
import math
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from worldloop.core.errors import WorldloopError
from worldloop.play.session import Frames, PlaySession

PAGE = Path(__file__).with_name("page.html")
TOKEN_HEADER = "X-Worldloop-Token"
GRIPPERS = ("gripper", "gripper_close")  # actions that the page toggles: above 0 the first opens, the second closes
_MAX_BODY = 64 * 1024
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class PlayServer:
    """Serves a game at ``url``. ``make_session`` is called in the thread that steps the game. ``port`` 0: any free one.

    Raises `WorldloopError` if the port is taken, and whatever ``make_session`` raises.
    """

    def __init__(self, make_session: Callable[[], PlaySession], port: int = 0) -> None:
        self.token = secrets.token_urlsafe(16)
        self._worker = ThreadPoolExecutor(max_workers=1)
        self.session = self._worker.submit(make_session).result()
        try:
            self._http = ThreadingHTTPServer(("127.0.0.1", port), _make_handler(self))
        except OSError as error:
            self._worker.submit(self.session.close).result()
            raise WorldloopError(
                f"cannot listen on 127.0.0.1:{port} ({error.strerror}): give another --port"
            ) from error
        self._http.daemon_threads = True
        self.port = int(self._http.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/?token={self.token}"

    def serve_forever(self) -> None:
        self._http.serve_forever(poll_interval=0.2)

    def close(self) -> None:
        self._http.server_close()
        self._worker.submit(self.session.close).result()
        self._worker.shutdown()

    def shutdown(self) -> None:
        """End `serve_forever` from another thread."""
        self._http.shutdown()

    def call(self, name: str, values: dict[str, Any]) -> dict[str, Any]:
        """Execute a call in the session's thread; raises `WorldloopError` for an unknown call or bad values."""
        return self._worker.submit(self._execute, name, values).result()

    def _execute(self, name: str, values: dict[str, Any]) -> dict[str, Any]:
        session = self.session
        match name:
            case "state":
                pass
            case "reset":
                session.reset(values.get("start", 0))
            case "step":
                session.step(values.get("action", []))
            case "go_to":
                session.go_to(values.get("moment", 0))
            case "show_plan":
                session.show_plan(values.get("shown", False))
            case _:
                raise WorldloopError(f"unknown call {name!r}: state, reset, step, go_to, show_plan")
        return describe(session)


def describe(session: PlaySession) -> dict[str, Any]:
    """What the page shows, as plain values; frames are camera -> base64 of u8 [h, w, 3]."""
    spec, robot, now = session.spec, session.spec.robot, session.moments[session.now]
    return {
        "task": session.task,
        "instruction": session.instruction,
        "note": session.note,
        "cameras": [{"name": c.name, "height": c.height, "width": c.width} for c in robot.cameras],
        "frames_per_second": spec.frames_per_second,
        "actions": [
            {"name": name, "springs_back": bool(abs(low + high) <= 1e-6 * (high - low)) and name not in GRIPPERS}
            for name, low, high in zip(robot.action_names, robot.action_low, robot.action_high, strict=True)
        ],
        "start": session.start,
        "starts": [{"task": task, "instruction": instruction} for task, instruction in session.starts],
        "now": session.now,
        "path": session.path(),
        "branches": session.branches(),
        "frames": _encode(now.frames),
        "success_prob": round(now.success_prob, 4),
        "threshold": session.calibration.threshold,
        "expected_psnr_db": round(now.expected_psnr_db, 2) if math.isfinite(now.expected_psnr_db) else None,
        "floor_db": session.calibration.floor_db,
        "value": None if now.value is None else round(now.value, 4),
        "has_planner": session.has_planner,
        "plan": None if (plan := session.plan()) is None else _encode(plan),
        "success_by_moment": [round(moment.success_prob, 3) for moment in session.moments],
        "simulated": None
        if now.simulated is None
        else {
            "frames": _encode(now.simulated.frames),
            "success": now.simulated.success,
            "psnr_db": {name: _psnr_db(now.frames[name], now.simulated.frames[name]) for name in now.frames},
        },
        "simulator_error": session.simulator_error,
    }


def _encode(frames: Frames) -> dict[str, str]:
    return {name: base64.b64encode(np.ascontiguousarray(frame).tobytes()).decode() for name, frame in frames.items()}


def _psnr_db(a: np.ndarray, b: np.ndarray) -> float | None:
    """The PSNR between two u8 images in dB, ``None`` if they are equal."""
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return round(10 * math.log10(255**2 / error), 2) if error else None


def _make_handler(server: PlayServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            address = urlsplit(self.path)
            token = parse_qs(address.query).get("token", [""])[0]
            if address.path != "/":
                self._send(HTTPStatus.NOT_FOUND, b"not found", "text/plain")
            elif self._is_allowed(token):
                self._send(HTTPStatus.OK, PAGE.read_bytes(), "text/html; charset=utf-8")

        def do_POST(self) -> None:
            if not self._is_allowed(self.headers.get(TOKEN_HEADER, "")):
                return
            name = urlsplit(self.path).path.removeprefix("/api/")
            try:
                answer, status = server.call(name, self._read_body()), HTTPStatus.OK
            except WorldloopError as error:
                answer, status = {"error": str(error)}, HTTPStatus.BAD_REQUEST
            self._send(status, json.dumps(answer).encode(), "application/json")

        def _is_allowed(self, token: str) -> bool:
            """Whether host and token are right; answers 403 if not.

            A page of another site may reach the port, even under a host name of its own, but cannot know the token.
            """
            hosts = (f"127.0.0.1:{server.port}", f"localhost:{server.port}")
            if self.headers.get("Host") in hosts and hmac.compare_digest(token.encode(), server.token.encode()):
                return True
            self._send(HTTPStatus.FORBIDDEN, b"open the address that worldloop play printed", "text/plain")
            return False

        def _read_body(self) -> dict[str, Any]:
            length = self.headers.get("Content-Length", "0")
            if not length.isdecimal() or int(length) > _MAX_BODY:
                raise WorldloopError("the request is too long")
            try:
                values = json.loads(self.rfile.read(int(length)) or b"{}")
            except ValueError as error:
                raise WorldloopError(f"the request is no JSON ({error})") from error
            if not isinstance(values, dict):
                raise WorldloopError("the request must be a JSON object")
            return values

        def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
            try:
                self.send_response(status)
                for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **_HEADERS}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the browser was closed

        def log_message(self, *arguments: Any) -> None:
            """Logs nothing, because the first request contains the token."""

    return Handler
