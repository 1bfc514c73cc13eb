"""User names and passwords in addresses stay out of errors, and out of what a process prints."""

import os
import pickle
import subprocess
import sys

import pytest

from sparsebench.errors import MeasureError, ModelError, SourceError, library_errors, redacted

SECRET = "https://me:pass%40word@mirror.example/path"
SCRIPT = """
import logging, os, sys
from sparsebench.errors import redact_stderr
redact_stderr()
logging.warning("retrying %s", os.environ["HF_ENDPOINT"])
raise ValueError(os.environ["HF_ENDPOINT"])
"""


def test_errors_keep_no_password_of_an_address() -> None:
    error = SourceError(f"no answer from {SECRET}", f"see {SECRET}")
    for shown in (str(error), repr(error), error.message, error.hint, str(pickle.loads(pickle.dumps(error)))):
        assert shown and "mirror.example/path" in shown
        assert "me:" not in shown and "word" not in shown


def test_what_is_no_password_stays() -> None:
    for text in ("hf:org/name@main", "https://host/a@b", "someone@host", "wheel:a==1!b@c"):
        assert redacted(text) == text


def test_a_process_prints_no_password_of_its_environment() -> None:
    env = os.environ | {"HF_ENDPOINT": SECRET}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=False)
    assert done.stderr.count("mirror.example/path") == 2, done.stderr
    assert "pass" not in done.stderr


@pytest.mark.parametrize(("error", "kind"), [(MemoryError(), MeasureError), (ValueError("no key `x`"), ModelError)])
def test_exhausted_memory_is_not_blamed_on_a_file(error: Exception, kind: type[Exception]) -> None:
    with pytest.raises(kind), library_errors("model.safetensors: it cannot be loaded", "fetch it again"):
        raise error
