"""A full disk: the command fails with one line, and the same command continues once there is space."""

from pathlib import Path

from chaos.job import run_job, vectors_of
from raypipe.errors import RaypipeError
from raypipe.storage import Folder
from support.embed_outputs import content, upload
from support.memory_disk import PAGE_KB, memory_disk


def test_a_disk_that_is_full_until_there_is_room(tmp_path: Path) -> None:
    with memory_disk(tmp_path / "disk") as disk:
        source, output, whole = (Folder(str(path)) for path in (tmp_path / "in", disk.path / "out", tmp_path / "whole"))
        upload(source, {f"{number}.mp4": content(seed=number) for number in range(7)})
        run_job(source, whole)
        endings: list[str] = []
        num_pages = 1
        while True:
            disk.resize(PAGE_KB * num_pages)
            try:
                run_job(source, output)
            except RaypipeError as error:
                endings.append(str(error))
            else:
                break
            num_pages += 1 + num_pages // 4
        assert len(endings) > 5
        assert all("No space left" in ending and "\n" not in ending for ending in endings), endings
        assert vectors_of(output) == vectors_of(whole)
