"""The doctor's judgement and its report."""

import json

import pytest

from worldloop.cli import doctor
from worldloop.cli.doctor import Check, check_package, format_table, read_pins, run_probe


def test_probe_survives_crash_hang_and_exception():
    crash = run_probe("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert (crash.ok, crash.detail) == (False, "crashed with signal 11")
    assert run_probe("import time; time.sleep(60)", timeout_s=0.3).detail == "no answer within 0 s"
    failed = run_probe("raise RuntimeError('no driver')")
    assert (failed.ok, failed.detail) == (False, "RuntimeError: no driver")
    assert run_probe("print('noise'); print('answer')") == doctor.Probe(True, "answer")


def test_rendering_needs_a_device(monkeypatch):
    monkeypatch.setattr(doctor, "RENDER_CODE", "print('')")
    assert not doctor.probe_rendering().ok
    monkeypatch.setattr(doctor, "RENDER_CODE", "print('some device')")
    assert doctor.probe_rendering() == doctor.Probe(True, "some device")


def test_libero_may_be_missing_or_not_complete(monkeypatch):
    monkeypatch.setattr(doctor, "_installed_version", lambda name: None)
    check = doctor._check_libero()
    assert (check.status, "make libero" in check.detail) == ("info", True)
    monkeypatch.setattr(doctor, "_installed_version", lambda name: "1.0")
    monkeypatch.setattr(doctor, "LIBERO_CODE", "raise ImportError('no meshes')")
    assert doctor._check_libero() == Check("LIBERO", "warn", "ImportError: no meshes")


def test_pins_are_read_by_normal_name():
    text = "# made by\nMani_Skill==3.0.1\n    # via x==9\ntorch==2.11.0 ; python_version > '3'\n-e .\n"
    assert read_pins(text) == {"mani-skill": "3.0.1", "torch": "2.11.0"}


def test_package_against_pin():
    assert check_package("torch", "2.11.0+cpu", "2.11.0", True).status == "ok"
    assert check_package("torch", "2.10.0", "2.11.0", True).status == "warn"
    assert check_package("torch", None, "2.11.0", True).status == "missing"
    assert check_package("peft", None, "0.21", False).status == "warn"


def test_report_fits_80_columns_and_gives_each_remedy_once():
    command = (
        "sudo apt-get install -y -t bookworm-backports mesa-vulkan-drivers libvulkan1 libegl1 libgl1 libglx0 ffmpeg"
    )
    checks = [
        Check("torch", "ok", "2.11.0"),
        Check("Vulkan rendering", "missing", "no device " * 20, "sudo apt-get update\n" + command),
        Check("video decoding", "missing", "no FFmpeg", "sudo apt-get update\n" + command),
    ]
    report = format_table(checks)
    assert max(len(line) for line in report.splitlines()) <= 80
    assert report.count("sudo apt-get update") == 1
    assert "To mend Vulkan rendering, video decoding:" in report
    assert report.endswith("The loop cannot run yet: see what is missing above.")
    unwrapped = " ".join(report.replace("\\\n", " ").split())
    assert command in unwrapped


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warn", 0), ("info", 0), ("missing", 1)])
def test_exit_code_and_json(monkeypatch, capsys, status, code):
    monkeypatch.setattr(doctor, "collect_checks", lambda: [Check("a", status, "b", "c")])
    assert doctor.run_doctor(as_json=True) == code
    expected = {"name": "a", "status": status, "detail": "b", "remedy": "c"}
    assert json.loads(capsys.readouterr().out) == {"can_run": code == 0, "checks": [expected]}


def test_missing_driver_is_reported_with_a_remedy(monkeypatch):
    monkeypatch.delenv("VK_DRIVER_FILES", raising=False)
    monkeypatch.delenv("VK_ICD_FILENAMES", raising=False)
    monkeypatch.setattr(doctor, "probe_rendering", lambda: doctor.Probe(False, "none"))
    check = doctor._check_rendering()
    assert check.status == "missing"
    assert "mesa-vulkan-drivers" in check.remedy or "lavapipe" in check.remedy
    monkeypatch.setenv("VK_ICD_FILENAMES", "/nonexistent")
    assert doctor._check_rendering().remedy == "unset VK_ICD_FILENAMES"


def test_missing_opengl_is_a_warning_with_a_remedy(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(doctor, "OPENGL_CODE", "import sys; sys.exit('neither works')")
    check = doctor._check_opengl()
    assert (check.status, check.detail) == ("warn", "neither works")
    assert "libegl1" in check.remedy or "EGL" in check.remedy
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert doctor._check_opengl().remedy == "unset MUJOCO_GL"
    monkeypatch.setattr(doctor, "OPENGL_CODE", "import no_such_package")
    assert doctor._check_opengl().remedy == doctor.REINSTALL


def test_opengl_that_draws_is_named(monkeypatch):
    pytest.importorskip("mujoco", reason="needs the extra metaworld")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    check = doctor._check_opengl()
    assert check.status == "ok", check.detail
    assert check.detail in ("MuJoCo draws with egl", "MuJoCo draws with osmesa")
    monkeypatch.setenv("MUJOCO_GL", "disable")
    assert "MUJOCO_GL=disable turns off" in doctor._check_opengl().detail


def test_collected_checks_cover_what_the_loop_needs(monkeypatch):
    monkeypatch.setattr(doctor, "TORCH_CODE", 'print(\'{"version": "2", "cuda": null, "gpus": []}\')')
    monkeypatch.setattr(doctor, "RENDER_CODE", "print('device')")
    monkeypatch.setattr(doctor, "OPENGL_CODE", "print('egl')")
    monkeypatch.setattr(doctor, "_check_ffmpeg", lambda: Check("video decoding", "ok", ""))
    checks = {check.name: check for check in doctor.collect_checks()}
    expected = {
        "Python",
        "torch",
        "mani_skill",
        "pinned set",
        "Vulkan rendering",
        "OpenGL rendering",
        "metaworld",
        "disk",
        "memory",
        "CPU cores",
        "LPIPS",
    }
    assert expected <= set(checks)
    assert checks["torch runs"].detail == "CUDA build none; no GPU: everything runs on the CPU"
