"""A worker group whose storage holds a snapshot that a kill cut off."""

from pathlib import Path

from ray_jobs.stages import Stage
from ray_jobs.store import Store
from ray_jobs.workers import RUN, Group, Member, run_group


def note(member: Member, plan: str) -> None:
    member.tell(plan)


def test_a_snapshot_that_was_cut_off_is_trained_again(cluster, tmp_path, capsys):
    group = Group(1, 1, "cpu", Stage(Store.at(str(tmp_path)), "trainings", 1, {}, {}))
    place = Path(group.folder) / RUN
    place.mkdir(parents=True)
    (place / "checkpoint_manager_snapshot.json").write_text('{"ray_version": "2.')
    told: list[str] = []
    run_group(group, note, "trained", told.append)
    assert told == ["trained"]
    assert capsys.readouterr().out.count("starting again") == 2
