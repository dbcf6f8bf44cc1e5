"""Looks at a built site in a headless browser: python .ci/check_site.py build-site.

Every formula must be rendered by what the site itself serves, no TeX may be left outside of code,
and no block of mathematics may be shown as code. Needs Chromium or Chrome, and nothing that is not
in Python. What is wrong ends it with status 1.
"""
import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BROWSERS = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"
# No name is looked up: what the site does not serve itself is missing.
OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
           "--disable-background-networking", "--disable-component-update", "--disable-sync",
           "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
           "--virtual-time-budget=30000"]
SECONDS = 120  # for a page
NO_END = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source",
          "track", "wbr"}
UNREAD = {"script", "style", "title", "textarea"}
TEX = re.compile(r"\$|\\[()\[\]]|\\begin\{")


class _Page(HTMLParser):
    """Formulas of a page, how many of them are rendered, and what is wrong with it."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []  # tags, and what they are to this check
        self.formulas, self.rendered, self.wrong = 0, 0, []  # type: tuple[int, int, list[str]]

    def _inside(self, kind: str) -> bool:
        return any(found == kind for _, found in self.open)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        classes = (given.get("class") or "").split()
        kind = ("formula" if "arithmatex" in classes else "rendered" if tag == "mjx-container"
                else "code" if tag in ("code", "pre") else "unread" if tag in UNREAD else "")
        self.formulas += kind == "formula"
        self.rendered += kind == "rendered" and self._inside("formula")
        if "data-mjx-error" in given:
            self.wrong.append(f"a formula has an error: {given['data-mjx-error']}")
        if "mjx-c5C" in classes:  # a macro inside of \text, which MathJax does not expand
            self.wrong.append("a formula shows a backslash")
        if tag not in NO_END:
            self.open.append((tag, kind))

    def handle_endtag(self, tag: str) -> None:
        names = [name for name, _ in self.open]
        if tag in names:
            del self.open[len(names) - 1 - names[::-1].index(tag):]

    def handle_data(self, data: str) -> None:
        if self._inside("unread") or self._inside("rendered"):
            return
        if self._inside("code"):
            if "\\begin{" in data:
                self.wrong.append(f"a block of mathematics is shown as code: {data.strip()[:60]}")
        elif TEX.search(data):
            self.wrong.append(f"TeX is shown as it is written: {data.strip()[:60]}")


def problems(html: str) -> list[str]:
    """What is wrong with a page as the browser shows it."""
    page = _Page()
    page.feed(html)
    page.close()
    if page.rendered != page.formulas:
        page.wrong.insert(0, f"expected {page.formulas} rendered formulas, got {page.rendered}")
    return page.wrong


@contextmanager
def served(site: Path, missing: set[str]) -> Iterator[str]:
    """The address of a folder, served to this machine only; files that are asked for and not there
    are added to missing."""
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def send_error(self, *args: Any, **more: Any) -> None:
            missing.add(self.path)
            super().send_error(*args, **more)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def shown(browser: str, address: str) -> str:
    """The page as it stands after its scripts have run."""
    with tempfile.TemporaryDirectory() as profile:
        return subprocess.run([browser, *OPTIONS, f"--user-data-dir={profile}", "--dump-dom",
                               address], capture_output=True, text=True, check=True,
                              timeout=SECONDS).stdout


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("site", type=Path)
    site = parser.parse_args(arguments).site
    browser = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if browser is None:
        sys.exit(f"expected a browser, found none of {', '.join(BROWSERS)}")
    formulas, missing, wrong = 0, set[str](), list[str]()
    with served(site, missing) as address:
        for page in sorted(site.rglob("*.html")):
            name = page.relative_to(site).as_posix()
            html = page.read_text()
            here = html.count('class="arithmatex"')
            formulas += here
            # without formulas the browser would show nothing else
            found = problems(shown(browser, f"{address}/{name}") if here else html)
            wrong += [f"{name}: {one}" for one in found]
    wrong += [f"expected {path} in the site" for path in sorted(missing)]
    if not formulas:
        wrong.append("expected formulas in some page, found none")
    print("\n".join(wrong) or f"{site}: {formulas} formulas are rendered")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
