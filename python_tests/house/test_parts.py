"""LSNN_CASES: the parts of the tables of cases that `make test` runs."""
import conftest
import pytest


def test_the_parts_of_a_table_are_the_table() -> None:
    large = [f"a.py::test_large[{i}]" for i in range(conftest.LARGE_TABLE)]
    slow = [f"a.py::test_slow[{i}]" for i in range(conftest.LARGE_SLOW_TABLE)]
    names = ["a.py::test", *large, *slow, *(name.replace("large", "small") for name in large[1:])]
    parts = [set(names) - {names[i] for i in conftest.cases_left_out(names, k, 7, slow)}
             for k in range(7)]
    assert set.union(*parts) == set(names)
    assert set.intersection(*parts) == set(names) - {*large, *slow}  # small tables: in every part
    assert sum(len(part & {*large, *slow}) for part in parts) == len(large) + len(slow)
    assert conftest.cases_left_out(names, 0, 1) == set()


@pytest.mark.parametrize("part", ["2/2", "0/0", "1", "-1/3", "a/b"])
def test_an_invalid_part_is_refused(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSNN_CASES", part)
    with pytest.raises(pytest.UsageError, match="LSNN_CASES: expected k/n, 0 <= k < n, got"):
        conftest._read_part()
