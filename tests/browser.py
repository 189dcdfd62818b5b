"""A browser that tests drive: the machine's own Chromium, or one out of Debian's archive."""

from __future__ import annotations

import shutil
from pathlib import Path

from components import component

# What Debian's chromium-headless-shell needs beside libc, for machines that have no browser.
LIBRARIES = """
chromium-common fonts-dejavu-core libasound2 libasyncns0 libatk1.0-0 libatspi2.0-0 libblkid1 libbrotli1 libbsd0 libcap2
libdav1d6 libdbus-1-3 libdouble-conversion3 libdrm2 libexpat1 libffi8 libflac12 libfontconfig1 libfreetype6 libgbm1
libgcrypt20 libglib2.0-0 libgpg-error0 libgraphite2-3 libharfbuzz-subset0 libharfbuzz0b libjpeg62-turbo liblz4-1
liblzma5 libmd0 libminizip1 libmount1 libmp3lame0 libmpg123-0 libnspr4 libnss3 libogg0 libopenh264-7 libopus0
libpcre2-8-0 libpng16-16 libpulse0 libselinux1 libsndfile1 libsqlite3-0 libsystemd0 libudev1 libvorbis0a libvorbisenc2
libwayland-server0 libx11-6 libx11-xcb1 libxau6 libxcb1 libxcomposite1 libxdamage1 libxdmcp6 libxext6 libxfixes3 libxi6
libxkbcommon0 libxnvctrl0 libxrandr2 libxrender1 libzstd1 zlib1g
"""


def chromium() -> tuple[Path, dict[str, str]]:
    """A browser, and what its environment adds. Raises RuntimeError where none can be had."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell"):
        if found := shutil.which(name):
            return Path(found), {}
    tree = component("chromium-headless-shell", "chromium-headless-shell", LIBRARIES.split()).parents[2]
    places = ("usr/lib/*-linux-gnu", "lib/*-linux-gnu", "usr/lib/*-linux-gnu/pulseaudio")
    libraries = [str(path) for place in places for path in tree.glob(place)]
    fonts = tree / "fonts.conf"
    fonts.write_text(f"<fontconfig><dir>{tree}/usr/share/fonts</dir><cachedir>{tree}/fonts</cachedir></fontconfig>")
    environment = {"LD_LIBRARY_PATH": ":".join(libraries), "FONTCONFIG_FILE": str(fonts)}
    return tree / "usr/lib/chromium/chromium-headless-shell", environment


if __name__ == "__main__":
    print(chromium()[0])
