"""The set-up scripts' own decisions, without installing anything."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import bootstrap  # noqa: E402
import system_packages  # noqa: E402
from system_packages import SourceFile, UnsupportedSystemError, derive_backports, has_suite, plan  # noqa: E402

DEBIAN_12 = {"ID": "debian", "VERSION_ID": "12", "VERSION_CODENAME": "bookworm"}
DEB822 = """Types: deb deb-src
# a comment between fields
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Types: deb
URIs: http://mirror.example/security
Suites: bookworm-security
Components: main
"""


def make_python(path: Path, exit_code: int) -> Path:
    """An executable that answers the finder's question with `exit_code`: 0 suitable, 1 unsuitable, 7 without venv."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\n[ "$1" = -I ] || {{ echo python3.12-venv; exit 0; }}\nexit {exit_code}\n')
    path.chmod(0o755)
    return path


def find_python(root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a copy of setup.sh that sees only `root`."""
    script = root / "checkout" / "scripts" / "setup.sh"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text((ROOT / "scripts" / "setup.sh").read_text())
    base = {"HOME": str(root / "home"), "PATH": str(root / "bin"), "WORLDLOOP_PYTHON_DIRECTORIES": ""}
    command = ["/bin/sh", str(script), "--find-python"]
    return subprocess.run(command, env=base | environment, capture_output=True, text=True, check=False)


def test_finder_passes_over_a_shim_that_fails_and_finds_pyenv(tmp_path):
    make_python(tmp_path / "bin" / "python3.12", exit_code=127)
    expected = make_python(tmp_path / "home" / ".pyenv" / "versions" / "3.12.9" / "bin" / "python3.12", exit_code=0)
    assert find_python(tmp_path).stdout.strip() == str(expected)


def test_finder_prefers_312_anywhere_over_313_on_path(tmp_path):
    make_python(tmp_path / "bin" / "python3.13", exit_code=0)
    expected = make_python(tmp_path / "pyenv dir" / "versions" / "3.12.1" / "bin" / "python3.12", exit_code=0)
    assert find_python(tmp_path, PYENV_ROOT=str(tmp_path / "pyenv dir")).stdout.strip() == str(expected)


def test_finder_looks_into_system_directories_by_pattern(tmp_path):
    expected = make_python(tmp_path / "opt" / "tool" / "bin" / "python3.13", exit_code=0)
    result = find_python(tmp_path, WORLDLOOP_PYTHON_DIRECTORIES=f"{tmp_path}/opt/*/bin")
    assert result.stdout.strip() == str(expected)


def test_finder_uses_the_environment_that_is_there(tmp_path):
    make_python(tmp_path / "bin" / "python3.12", exit_code=0)
    expected = make_python(tmp_path / "checkout" / ".venv" / "bin" / "python", exit_code=0)
    assert find_python(tmp_path).stdout.strip() == str(expected)


def test_finder_takes_the_named_python_or_refuses_it(tmp_path):
    make_python(tmp_path / "bin" / "python3.12", exit_code=0)
    named = make_python(tmp_path / "else where" / "py", exit_code=0)
    assert find_python(tmp_path, PYTHON=str(named)).stdout.strip() == str(named)
    bad = make_python(tmp_path / "bad", exit_code=1)
    refused = find_python(tmp_path, PYTHON=str(bad))
    assert refused.returncode == 1
    assert f"PYTHON={bad} is not a working Python" in refused.stderr


def test_no_python_says_what_to_install(tmp_path):
    make_python(tmp_path / "bin" / "python3", exit_code=1)
    result = find_python(tmp_path)
    assert result.returncode == 1
    assert result.stdout == ""
    assert "no Python 3.12 or 3.13 found" in result.stderr
    assert "apt-get install -y python3 python3-venv" in result.stderr
    assert "PYTHON=/path/to/python3.12 make setup" in result.stderr


def test_python_without_venv_names_the_package(tmp_path):
    make_python(tmp_path / "bin" / "python3.12", exit_code=7)
    result = find_python(tmp_path)
    assert result.returncode == 1
    assert "sudo apt-get install -y python3.12-venv" in result.stderr


def test_backports_from_deb822_keep_address_and_key():
    added = derive_backports([SourceFile("debian.sources", DEB822)], "bookworm")
    assert added.name == "worldloop-backports.sources"
    assert added.text == (
        "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm-backports\nComponents: main\n"
        "Signed-By: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n"
    )


def test_backports_from_one_line_sources_keep_options():
    text = (
        "# deb http://off.example/debian bookworm main\n"
        "deb-src http://source.example/debian bookworm main\n"
        "deb http://security.example bookworm-security main\n"
        "deb [signed-by=/k.gpg arch=amd64] https://mirror.example/debian/ bookworm main contrib  # here\n"
    )
    added = derive_backports([SourceFile("sources.list", text)], "bookworm")
    assert added == SourceFile(
        "worldloop-backports.list",
        "deb [signed-by=/k.gpg arch=amd64] https://mirror.example/debian/ bookworm-backports main\n",
    )


def test_disabled_sources_do_not_count():
    disabled = SourceFile("debian.sources", "Enabled: no\n" + DEB822.split("\n\n")[0])
    with pytest.raises(UnsupportedSystemError, match="bookworm main"):
        derive_backports([disabled], "bookworm")
    assert has_suite([SourceFile("a.sources", DEB822)], "bookworm-updates")
    assert not has_suite([disabled], "bookworm-updates")


def test_debian_12_adds_backports_once():
    source = SourceFile("debian.sources", DEB822)
    steps = plan(DEBIAN_12, [source])
    assert steps[0].argv == ("tee", "/etc/apt/sources.list.d/worldloop-backports.sources")
    assert [step.as_shell(sudo=True) for step in steps[1:]] == [
        "sudo apt-get update",
        "sudo apt-get install -y --no-install-recommends libvulkan1 libegl1 libgl1 libglx0 ffmpeg",
        "sudo apt-get install -y --no-install-recommends -t bookworm-backports mesa-vulkan-drivers libegl-mesa0",
    ]
    again = plan(DEBIAN_12, [source, SourceFile("worldloop-backports.sources", steps[0].content)])
    assert again == steps[1:]


def test_the_printed_command_writes_the_same_file(tmp_path):
    step = plan(DEBIAN_12, [SourceFile("debian.sources", DEB822)], str(tmp_path))[0]
    Path(step.argv[-1]).parent.mkdir()
    subprocess.run(["/bin/sh", "-c", step.as_shell(sudo=False)], check=True, capture_output=True)
    assert Path(step.argv[-1]).read_text() == step.content


@pytest.mark.parametrize(("system", "version"), [("debian", "13"), ("ubuntu", "24.04"), ("ubuntu", "26.04")])
def test_newer_systems_need_no_backports(system, version):
    steps = plan({"ID": system, "VERSION_ID": version}, [])
    assert [step.argv[1] for step in steps] == ["update", "install"]
    assert "-t" not in steps[1].argv
    assert {"mesa-vulkan-drivers", "libegl-mesa0", "libvulkan1", "ffmpeg"} <= set(steps[1].argv)


@pytest.mark.parametrize(("system", "version"), [("debian", "11"), ("ubuntu", "22.04"), ("fedora", "41"), ("", "")])
def test_other_systems_are_told_what_is_needed(system, version):
    with pytest.raises(UnsupportedSystemError, match=r"lavapipe .* >= 24\.3"):
        plan({"ID": system, "VERSION_ID": version, "PRETTY_NAME": f"{system} {version}"}, [])


def test_a_failed_installation_removes_the_source_file_it_added(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    added = tmp_path / "added.sources"
    write = system_packages.Step(("tee", str(added)), content="Types: deb\n")
    assert system_packages.execute([write, system_packages.Step(("false",), may_fail=True)])
    assert added.read_text() == "Types: deb\n"
    assert not system_packages.execute([write, system_packages.Step(("false",))])
    assert not added.exists()


def test_os_release_is_parsed():
    parsed = system_packages.parse_os_release("ID=debian\n# c\nVERSION_ID=\"12\"\nPRETTY_NAME='a = b'\n")
    assert parsed == {"ID": "debian", "VERSION_ID": "12", "PRETTY_NAME": "a = b"}


def test_uv_gets_pips_own_index_unless_it_has_one():
    configuration = "global.index-url='https://mirror.example/simple'\n:env:.cert='/c.pem'\ninstall.user='no'\n"
    found = bootstrap.index_environment({"A": "1"}, configuration)
    assert found == {"A": "1", "UV_DEFAULT_INDEX": "https://mirror.example/simple", "SSL_CERT_FILE": "/c.pem"}
    own = {"UV_INDEX_URL": "https://own.example", "SSL_CERT_FILE": "/own.pem"}
    assert bootstrap.index_environment(own, configuration) == own
    assert bootstrap.index_environment({}, "") == {}


def test_stamp_follows_lock_place_and_python(tmp_path):
    (tmp_path / "pyproject.toml").write_text("p")
    (tmp_path / "requirements.lock").write_text("l")
    stamp = bootstrap.make_stamp(tmp_path, "/usr/bin/python3.12", "3.12.1")
    assert stamp["inputs"] == hashlib.sha256(b"lp").hexdigest()
    path = tmp_path / "stamp.json"
    assert bootstrap.read_stamp(path) == {}
    bootstrap.write_stamp(path, stamp)
    assert bootstrap.read_stamp(path) == stamp
    assert bootstrap.make_stamp(tmp_path, "/usr/bin/python3.12", "3.12.2") != stamp
    (tmp_path / "requirements.lock").write_text("other")
    assert bootstrap.make_stamp(tmp_path, "/usr/bin/python3.12", "3.12.1") != stamp
    path.write_text("{ broken")
    assert bootstrap.read_stamp(path) == {}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A tiny checkout with a stand-in for every command; `calls` lists what would have run."""
    (tmp_path / "pyproject.toml").write_text("p")
    (tmp_path / "requirements.lock").write_text("uv==1.2.3\n")
    calls: list[list[str]] = []
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    monkeypatch.setattr(bootstrap, "read_pip_configuration", lambda pip: "")
    monkeypatch.delenv("WORLDLOOP_SETUP_DRY_RUN", raising=False)

    def run(argv, environment=None):
        calls.append(argv)
        if "venv" in argv:
            (tmp_path / ".venv" / "bin").mkdir(parents=True)
            (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
        return not any(word in argv for word in failing)

    failing: set[str] = set()
    monkeypatch.setattr(bootstrap, "run", run)
    return tmp_path, calls, failing


def test_second_setup_runs_nothing(checkout):
    root, calls, _ = checkout
    bootstrap.set_up_packages()
    assert calls[1][-3:] == ["install", "--quiet", "uv==1.2.3"]
    assert calls[2][1:4] == ["-m", "uv", "pip"]
    assert "--compile-bytecode" in calls[2]
    assert len(calls) == 4
    bootstrap.set_up_packages()
    assert len(calls) == 4
    (root / "requirements.lock").write_text("uv==1.2.4\n")
    bootstrap.set_up_packages()
    assert len(calls) > 4


def test_dry_run_in_a_fresh_checkout_only_prints(tmp_path):
    for name in (
        "scripts/setup.sh",
        "scripts/bootstrap.py",
        "scripts/system_packages.py",
        "requirements.lock",
        "pyproject.toml",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    environment = os.environ | {
        "WORLDLOOP_SETUP_DRY_RUN": "1",
        "PYTHON": sys.executable,
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    before = sorted(tmp_path.rglob("*"))
    command = ["/bin/sh", "scripts/setup.sh"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "-m venv --clear" in result.stdout
    assert "install --no-deps -r requirements.lock" in result.stdout
    assert "Traceback" not in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_failed_install_leaves_no_stamp_and_falls_back_to_pip(checkout):
    root, calls, failing = checkout
    failing.add("requirements.lock")
    with pytest.raises(bootstrap.SetupError, match="could not be installed"):
        bootstrap.set_up_packages()
    assert [call[2] for call in calls if "requirements.lock" in call] == ["uv", "pip"]
    assert not (root / ".venv" / ".worldloop-setup.json").exists()


def test_drivers_without_root_are_printed_not_run(checkout, monkeypatch, capsys):
    root, _, _ = checkout
    monkeypatch.delenv("VK_DRIVER_FILES", raising=False)
    monkeypatch.delenv("VK_ICD_FILENAMES", raising=False)
    monkeypatch.setattr(bootstrap, "can_render", lambda python: (False, "no Vulkan device"))
    monkeypatch.setattr(bootstrap, "can_draw", lambda python: (True, "egl"))
    monkeypatch.setattr(system_packages, "can_become_root", lambda: False)
    monkeypatch.setattr(system_packages, "execute", lambda steps: pytest.fail("ran commands without root"))
    sources = [SourceFile("debian.sources", DEB822)]
    monkeypatch.setattr(system_packages, "read_machine", lambda: (DEBIAN_12, sources))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert not bootstrap.set_up_rendering(root / ".venv" / "bin" / "python")
    printed = capsys.readouterr().out
    assert "no Vulkan device" in printed
    assert "    sudo apt-get update\n" in printed
    assert "| sudo tee /etc/apt/sources.list.d/worldloop-backports.sources" in printed


def test_without_opengl_drivers_are_installed_and_vulkan_alone_is_enough(checkout, monkeypatch, capsys):
    root, _, _ = checkout
    monkeypatch.delenv("VK_DRIVER_FILES", raising=False)
    monkeypatch.delenv("VK_ICD_FILENAMES", raising=False)
    (root / ".venv").mkdir()
    stamp = root / ".venv" / ".worldloop-rendering.json"
    bootstrap.write_stamp(stamp, {"detail": "llvmpipe"})  # of a time before MuJoCo
    answers = [(False, "no EGL"), (False, "still none"), (False, "no EGL"), (True, "egl")]
    executed = []
    monkeypatch.setattr(bootstrap, "can_render", lambda python: (True, "llvmpipe"))
    monkeypatch.setattr(bootstrap, "can_draw", lambda python: answers.pop(0))
    monkeypatch.setattr(system_packages, "can_become_root", lambda: True)
    monkeypatch.setattr(system_packages, "execute", lambda steps: executed.append(steps) or True)
    sources = [SourceFile("debian.sources", DEB822)]
    monkeypatch.setattr(system_packages, "read_machine", lambda: (DEBIAN_12, sources))
    python = root / ".venv" / "bin" / "python"
    assert bootstrap.set_up_rendering(python)
    assert "MuJoCo cannot draw, so there is no Meta-World: still none" in capsys.readouterr().out
    assert "opengl" not in bootstrap.read_stamp(stamp)
    assert bootstrap.set_up_rendering(python)
    assert len(executed) == 2
    assert bootstrap.read_stamp(stamp) == {"detail": "llvmpipe", "opengl": "egl"}
    assert bootstrap.set_up_rendering(python), "nothing is asked a third time"


def test_an_overridden_driver_list_is_named(checkout, monkeypatch, capsys):
    monkeypatch.setenv("VK_DRIVER_FILES", "/nonexistent")
    monkeypatch.setattr(bootstrap, "can_render", lambda python: (False, "no Vulkan device"))
    monkeypatch.setattr(bootstrap, "can_draw", lambda python: (True, "egl"))
    monkeypatch.setattr(system_packages, "execute", lambda steps: pytest.fail("installed drivers in vain"))
    assert not bootstrap.set_up_rendering(Path("python"))
    assert "VK_DRIVER_FILES" in capsys.readouterr().out


def test_lock_is_pinned_and_names_no_place():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line for line in lines if line and not line.lstrip().startswith("#")]
    assert all("==" in line for line in pins)
    assert not [line for line in lines if "://" in line or "--" in line or " @ " in line or "file:" in line]
    names = {line.split("==")[0] for line in pins}
    expected = {
        "torch",
        "mani-skill",
        "sapien",
        "lerobot",
        "torchcodec",
        "transformers",
        "ray",
        "tensorboard",
    }
    expected |= {"torchmetrics", "diffusers", "peft", "pytest", "pytest-timeout", "ruff", "mypy", "uv", "setuptools"}
    assert expected <= names
    assert not {"opencv-python", "mplib"} & names  # see [tool.uv] in pyproject.toml
