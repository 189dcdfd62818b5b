"""The console command `adapterd`; also `python -m server`."""

from __future__ import annotations

from server.cli import app


def main() -> None:
    app()


if __name__ == "__main__":
    main()
