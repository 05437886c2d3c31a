import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aigc_jax import environment

MINOR = ".".join(importlib.metadata.version("jaxlib").split(".")[:2])


@pytest.fixture
def before_jax(monkeypatch):
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    for name in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        # Set and removed again, so that monkeypatch restores what the functions under test set.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_flags_stand_beside_a_users_own(before_jax, monkeypatch):
    monkeypatch.setattr(environment, "XLA_FLAGS", {MINOR: ("--a=1", "--b=2")})
    monkeypatch.setenv("XLA_FLAGS", "--b=3 --c=4")
    environment.tune_xla()
    assert os.environ["XLA_FLAGS"].split() == ["--b=3", "--c=4", "--a=1"]


def test_flags_of_another_version_are_left_out(before_jax, monkeypatch):
    monkeypatch.setattr(environment, "XLA_FLAGS", {"0.1": ("--a=1",)})
    environment.tune_xla()
    assert os.environ["XLA_FLAGS"] == ""


def test_programs_are_kept_where_a_user_says(before_jax, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/mine")
    environment.keep_programs()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "/mine"


def test_programs_are_kept_among_other_caches(before_jax, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    environment.keep_programs()
    assert Path(os.environ["JAX_COMPILATION_CACHE_DIR"]) == Path("/caches/aigc_jax")


def test_nothing_is_set_once_jax_is_imported(before_jax, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", object())
    environment.tune_xla()
    environment.keep_programs()
    assert not {"XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR"} & set(os.environ)


def test_importing_the_library_sets_nothing():
    code = "import os, aigc_jax.train.loop; assert 'XLA_FLAGS' not in os.environ"
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=env)


def test_the_installed_xla_knows_the_flags():
    code = "from aigc_jax import environment; environment.tune_xla(); import jax; jax.devices()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
