"""Every code block of the documentation runs as it is written, page by page, or is listed with the reason."""

from __future__ import annotations

import pytest
from doc_pages import RUN_GLOBS, Block, blocks_of, pages, read_blocks
from doc_session import HERE, Session, Wrong, outside_of
from doc_shapes import differences, missing_lines

RUN = [page for page in pages(RUN_GLOBS) if any(block.needs_account for block in blocks_of(page))]
NOT_RUN = (HERE / "not_run.txt").read_text().splitlines()
# huggingface_hub's own use of its HTTP library
pytestmark = [pytest.mark.timeout(400), pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")]


@pytest.mark.parametrize("page", RUN)
def test_blocks_run_as_written(page: str, session: Session) -> None:
    blocks = [block for block in blocks_of(page) if block.kind != "not run" and (block.needs_account or block.kind)]
    if outside := [block for block in blocks if outside_of(block)]:
        pytest.fail("\n".join(how_to_mark(block, f"{outside_of(block)!r} is not run here") for block in outside))
    for block in blocks:
        try:
            session.run(block)
        except Wrong as wrong:
            pytest.fail(how_to_mark(block, str(wrong)))


def how_to_mark(block: Block, why: str) -> str:
    return (
        f"{block.place}: {why}\nIf it cannot run here, write '<!-- not run: REASON -->' on the line before it, and into"
        f" tests/docs/not_run.txt:\n{block.page}: {block.first_line}\n"
    )


def test_blocks_that_do_not_run_are_listed_and_say_why() -> None:
    found = [block for page in pages(RUN_GLOBS) for block in blocks_of(page) if block.kind == "not run"]
    assert [block.place for block in found if len(block.value) < 10] == [], "no reason is given"
    listed = [line for line in NOT_RUN if line and not line.startswith("#")]
    known = set(pages(RUN_GLOBS))
    names = [f"{block.page}: {block.first_line}" for block in found]
    assert sorted(line for line in listed if line.partition(":")[0] in known) == sorted(names), (
        "tests/docs/not_run.txt and the marks in the pages differ; every block that is left out is a line of it"
    )


PAGE = """
<!-- not run: there is no docker here -->
```bash
docker run adapterd
```

```text
prose
```
<!-- file: a.toml -->
```toml
[api]
```
"""


def test_marks_are_read() -> None:
    blocks = list(read_blocks("x.md", PAGE))
    assert [(b.line, b.language, b.kind, b.value, b.needs_account) for b in blocks] == [
        (3, "bash", "not run", "there is no docker here", True),
        (7, "text", "", "", False),
        (11, "toml", "file", "a.toml", True),
    ]
    with pytest.raises(ValueError, match="no end"):
        list(read_blocks("x.md", "```bash\nls\n"))
    with pytest.raises(ValueError, match="between"):
        list(read_blocks("x.md", "<!-- output -->\nand\n```text\n```\n"))


def block(language: str, text: str, kind: str = "", value: str = "") -> Block:
    return Block("x.md", 1, language, text, kind, value)


def test_a_session_is_one_shell_and_one_python(session: Session) -> None:
    session.run(block("bash", "mkdir there; cd there; WORD=hello\n"))
    session.run(block("bash", 'pwd; echo "$WORD 12ab34cd 5.5"\n'))
    session.run(block("text", "hello 99ff99ff 7\n", "output"))
    session.run(block("console", "$ echo one; echo two >&2\none\ntwo\n"))
    session.run(block("python", "number = 6\n"))
    session.run(block("python", "import os\nprint(number * 7, os.path.exists('examples/adapters'))\n"))
    session.run(block("text", "1 True\n", "output"))
    session.run(block("bash", "no-such-command\n", "fails"))
    session.run(block("toml", "[api]\nport = 0\n", "file", "adapterd.toml"))
    session.run(block("bash", "cat ../adapterd.toml; echo $WORD\n"))
    assert session.before.text == "[api]\nport = 0\nhello\n"


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (block("bash", "echo no; false; echo yes\n"), "exit code 1\nno\n$"),
        (block("bash", "true\n", "fails"), "exit code 0"),
        (block("python", "1 / 0\n"), "division by zero"),
        (block("python", "1 / 1\n", "fails"), "nothing is raised"),
        (block("console", "$ echo one\ntwo\n"), "these lines do not come back:\ntwo"),
        (block("go", "package main\n"), "nothing runs 'go'"),
        (block("bash", "echo x | sudo tee y\n"), "'sudo' is outside"),
        (block("bash", "install -d /etc/adapterd\n"), "'/etc/' is outside"),
        (block("bash", "make install\n"), "'make' is outside"),
    ],
)
def test_a_block_that_is_wrong_is_told(wrong: Block, why: str, session: Session) -> None:
    with pytest.raises(Wrong, match=why):
        session.run(wrong)


def test_json_is_compared_in_shape(session: Session) -> None:
    session.run(block("bash", """echo '{"label": "good", "score": 0.75, "digest": "0123456789abcdef"}'\n"""))
    session.run(block("json", '{"label": "good", "score": 0.5, "digest": "ffff0000..."}'))
    with pytest.raises(Wrong, match=r"\$.label is 'good'"):
        session.run(block("json", '{"label": "bad", "score": 0.5, "...": "..."}'))


def test_differences_name_the_place() -> None:
    real = {"a": [1, 2, 3], "b": {"c": "text", "d": None}, "e": True}
    assert list(differences({"a": [0, "..."], "b": {"c": "te...", "...": ""}, "e": True}, real)) == []
    assert list(differences({"a": [0], "b": {"c": 1, "x": 1}, "e": 1}, real)) != []
    assert set(differences({"a": [1, 2], "...": ""}, real)) == {"$.a has 3 elements"}
    assert set(differences({"b": {"x": 1}, "...": ""}, real)) == {"$.b.x does not come back", "$.b has c, d too"}
    assert set(differences({"e": 1, "...": ""}, real)) == {"$.e is True"}


def test_lines_are_looked_for_in_their_order() -> None:
    assert missing_lines("b  2\n...\nd...", "a 1\nb 3\nc\nd and more") == []
    assert missing_lines("b\na", "a\nb") == ["a"]


def test_no_variable_of_the_caller_reaches_a_page(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTERD_TOKEN", "secret")
    session: Session = request.getfixturevalue("session")
    session.run(block("console", '$ echo "${ADAPTERD_TOKEN:-none}"\nnone\n'))
