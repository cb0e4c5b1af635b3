"""Keys that look like playlists, addresses, paths or commands: each is an ordinary video and gets a row."""

from chaos.job import run_job, vectors_of
from raypipe.storage import Folder
from support.embed_outputs import content

NAMES = (
    *("a.m3u8", "b.mp4.m3u8", "c.ffconcat", "d.sdp", "e.mpd", "f%d.ts", "g.concat", "-i", "--output=x.mp4"),
    *("http:/169.254.169.254/latest.mp4", "https://example.com/x.mp4", "file:///etc/passwd", "s3://other/x.mp4"),
    *("concat:a|b.mp4", "subfile,,start,0,end,0,,:x.mp4", "pipe:0", "data:video,x.mp4", "x.mp4?versionId=null"),
    *("x.mp4#fragment", "x%2F..%2Fy.mp4", "%00.mp4", "%.mp4", "a+b c.mp4", " leading.mp4", "trailing .mp4 "),
    *("quote'.mp4", 'double".mp4', "back\\slash.mp4", "$(touch x).mp4", "`id`.mp4", "; rm -rf x.mp4", "*.mp4", "[a-z]"),
    *("new\nline.mp4", "carriage\r.mp4", "tab\t.mp4", "<script>alert(1)</script>.mp4", "&amp;.mp4", "]]>.mp4", "{x!r}"),
    *(
        "ünï.mp4",
        "u\u0308ni.mp4",
        "\u202egnp.mp4",
        "\u200b.mp4",
        "\ufeff.mp4",
        "😀.mp4",
        "\U000e0001.mp4",
        "\ufffe.mp4",
    ),
    *("a" * 200 + ".mp4", "/".join("abcdefghij") + ".mp4", "COM1.mp4", "NUL", "~root.mp4", "=1+1.mp4", "@SUM(A1).mp4"),
)


def test_every_name_is_a_row(bucket: str) -> None:
    source, output = Folder(f"{bucket}/in"), Folder(f"{bucket}/out")
    # This server stores "\" as "/" and "//" as "/".
    names = [name for name in NAMES if "\\" not in name and "//" not in name]
    for number, name in enumerate(names):
        assert source.put_new(name, content(seed=number)), name
    listed = sorted(stored.key for stored in source.list())
    run_job(source, output)
    rows = vectors_of(output)
    assert sorted(rows) == listed == sorted(names)
    assert {status for status, _ in rows.values()} == {"ok"}


def test_names_on_disk(tmp_path: object) -> None:
    source, output = Folder(f"{tmp_path}/in"), Folder(f"{tmp_path}/out")
    names = [name.replace("/", "|") for name in NAMES if len(name.encode()) < 240]
    for number, name in enumerate(names):
        assert source.put_new(name, content(seed=number)), name
    run_job(source, output)
    assert sorted(vectors_of(output)) == sorted(set(names))
