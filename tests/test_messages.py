"""Every sentence that raypipe prints is in one golden file, and nowhere else in the tests."""

from support.messages import GOLDEN, golden_text


def test_every_sentence_is_in_the_golden_file() -> None:
    assert GOLDEN.read_text(encoding="utf-8") == golden_text(), "Run 'make messages', and review its diff."
