import pytest


@pytest.fixture
def show(capfd):
    """Prints a line for whoever watches, past pytest's capture."""

    def line(text):
        with capfd.disabled():
            print(f"\n{text}", flush=True)

    return line
