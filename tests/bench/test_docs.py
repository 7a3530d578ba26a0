"""The generated pages are what the ops say now, and a stale one is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashvl_kernels import docs


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> str:
    """docs/ops.md as it would be written now; asked for once, it takes seconds."""
    text = _page()
    monkeypatch.setattr(docs, "ops_page", lambda: text)
    return text


_cached: list[str] = []


def _page() -> str:
    if not _cached:
        _cached.append(docs.ops_page())
    return _cached[0]


def test_ops_page_of_the_repository_is_current(page: str) -> None:
    assert (docs.FOLDER / "ops.md").read_text() == page, "run: python -m flashvl_kernels.docs"


def test_a_stale_page_fails_the_check(
    page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ops.md").write_text(page)
    rows = [
        f"| `{op}` | {dtype} | {name} | 0 | 0 | 0 |" for op, dtype, name, _ in docs.numerics_rows()
    ]
    (tmp_path / "numerics.md").write_text("\n".join(rows))
    assert docs.main(["--check", "--folder", str(tmp_path)]) == 0
    (tmp_path / "ops.md").write_text(page.replace("| yes |", "| no |", 1))
    (tmp_path / "numerics.md").write_text("\n".join(rows[1:]))
    assert docs.main(["--check", "--folder", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "ops.md differs" in told and "is missing" in told


def test_an_error_above_the_allowed_is_stale() -> None:
    rows = [
        f"| `{op}` | {dtype} | {name} | 1e-3 | 1e-3 | 2e-3 |"
        for op, dtype, name, _ in docs.numerics_rows()
    ]
    assert docs.numerics_stale("\n".join(rows)) == ""
    rows[3] = rows[3].replace("2e-3", "9e-4")
    assert "above what is allowed" in docs.numerics_stale("\n".join(rows))


def test_without_the_extension_numerics_is_left_alone(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docs, "missing_backends", lambda: "the extension is absent")
    (tmp_path / "numerics.md").write_text("as it was")
    assert docs.main(["--folder", str(tmp_path)]) == 1
    assert (tmp_path / "numerics.md").read_text() == "as it was"
    assert (tmp_path / "ops.md").read_text() == page


def test_a_folder_that_is_none_is_an_error(tmp_path: Path) -> None:
    assert docs.main(["--folder", str(tmp_path / "absent")]) == 2


def test_errors_shown_are_within_what_is_allowed() -> None:
    from flashvl_kernels.ops.rms_norm import SPEC

    found = docs.errors(SPEC, "torch", docs.DTYPES["bf16"])
    assert found.right and 0 < found.error == found.plain < found.allowed < 0.02
