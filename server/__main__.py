"""The console command `adapterd`; also `python -m server`."""

from __future__ import annotations

from server.cli import app


def main() -> None:
    app(prog_name="adapterd")  # as its messages and completion call it, however it was started


if __name__ == "__main__":
    main()
