"""Make docs/play.png and docs/play.gif: `worldloop play`, driven in a real browser.

    python scripts/record_play.py RUN [--start 0] [--out docs]

A game on the run's world model beside its simulator: the task's scripted expert, who sees the simulator, goes on until
one frame after its success; then back to moment 2, and a branch by keys that misses. Needs Chromium.
"""

from __future__ import annotations

import argparse
import io
import threading
from pathlib import Path

import torch
from browser import Browser
from PIL import Image

from worldloop.core.interfaces import ScriptedSource
from worldloop.play.make import find_simulator, make_play_session
from worldloop.play.server import PlayServer

DOCS = Path(__file__).resolve().parents[1] / "docs"
MISS = ("ArrowRight", "ArrowDown", "ArrowDown", "ArrowDown")
BRANCH_AT, MAX_FRAMES = 2, 12


def plan_game(server: PlayServer, start: int) -> list[list[float]]:
    """What the expert does until a frame after its success: an action a frame, the mean of its s, in shares."""

    def plan() -> list[list[float]]:
        session = server.session
        session.reset(start)
        simulator, spec = session.simulator, session.spec
        if session.moments[0].simulated is None or not isinstance(simulator, ScriptedSource):
            raise SystemExit("this run has no simulator with a scripted policy to play beside")
        observation = simulator.reset(session.sim_state(0))
        policy = simulator.make_scripted_policy(
            (session.task,), ("expert",), torch.zeros(1, dtype=torch.long), spec.actions_per_frame
        )
        low, high = torch.tensor(spec.robot.action_low), torch.tensor(spec.robot.action_high)
        actions: list[list[float]] = []
        succeeded = False
        while not succeeded and len(actions) < MAX_FRAMES:
            mean = policy.act(observation, None).actions.mean(1, keepdim=True)
            actions.append((2 * (mean[0, 0] - low) / (high - low) - 1).clamp(-1, 1).tolist())
            step = simulator.step_chunk(mean.expand(1, spec.actions_per_frame, -1).contiguous())
            observation, succeeded = step.observation, bool(step.success.any())
        actions.append(actions[-1])
        session.reset(start)
        return actions

    return server._worker.submit(plan).result()


def record(server: PlayServer, start: int) -> list[Image.Image]:
    actions = plan_game(server, start)
    pictures = []
    with Browser(980, 860) as page:

        def keep() -> None:
            page.wait_for("!busy")
            page.evaluate("new Promise(requestAnimationFrame)")
            pictures.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))

        page.open(server.url)
        page.wait_for("state && document.getElementById('task').textContent === state.task")
        keep()
        for action in actions:
            page.evaluate(f"step({action})")
            keep()
        page.evaluate(f"call('go_to', {{moment: {BRANCH_AT}}})")
        keep()
        page.evaluate("document.getElementById('pace').value = 0")
        for key in MISS:
            now = page.evaluate("state.now")
            page.send("Input.dispatchKeyEvent", type="keyDown", key=key)
            page.wait_for(f"state.now > {now}")
            page.send("Input.dispatchKeyEvent", type="keyUp", key=key)
            keep()
    return pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--out", type=Path, default=DOCS)
    options = parser.parse_args()
    server = PlayServer(lambda: make_play_session(options.run, find_simulator(options.run), "cpu"))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        pictures = record(server, options.start)
    finally:
        server.shutdown()
        thread.join()
        server.close()
    pictures[-2 - len(MISS)].save(options.out / "play.png", optimize=True)  # the last moment of the expert's game
    shape = 530, 465
    small = [p.resize(shape, Image.Resampling.LANCZOS).quantize(112, dither=Image.Dither.NONE) for p in pictures]
    small[0].save(
        options.out / "play.gif", save_all=True, append_images=small[1:], loop=0, optimize=True,
        duration=[900, *[350] * (len(small) - 2), 1500],
    )  # fmt: skip


if __name__ == "__main__":
    main()
