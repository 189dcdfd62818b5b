"""python -m deploy.check_dockerfile: see the package."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from deploy import check_dockerfile
from deploy.check_dockerfile.build import CONTEXT, Build, check_libraries
from deploy.check_dockerfile.container import Container
from deploy.check_dockerfile.dockerfile import Failed


def main() -> int:
    options = _options()
    arguments = {name: value for name, _, value in (text.partition("=") for text in options.build_arg)}
    os.umask(0o022)
    folder = Path(tempfile.mkdtemp(prefix="adapterd-image-")).resolve()
    folder.chmod(0o755)  # the image's user looks into it
    try:
        build = Build(folder, (CONTEXT / "Dockerfile").read_text(), arguments)
        image = build.run(options.target)
        check_libraries(build, options.target, arguments.get("PIP_EXTRA_ARGS", ""))
        if not options.no_serve:
            Container(build, image).check()
    except Failed as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    finally:
        if options.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder)
    print(f"OK: {options.target}")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.check_dockerfile",
        description=check_dockerfile.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--target", required=True)
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--no-serve", action="store_true", help="only the steps, for a device that is not here")
    parser.add_argument("--keep", action="store_true", help="leave the scratch folder for a look")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
