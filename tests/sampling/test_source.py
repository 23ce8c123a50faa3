import torch

from dmx.sampling.source import WHOLE_IMAGE, CaseData, DeviceSource, MemoryMappedSource


def counting(cases):
    opened = []

    def loader(number):
        def load():
            opened.append(number)
            return cases[number]

        return load

    return [loader(n) for n in range(len(cases))], opened


def test_a_case_knows_what_can_be_drawn_from_it(make_case):
    case = make_case(lesion=False)
    assert case.has("background")
    assert case.has(WHOLE_IMAGE)
    assert not case.has("foreground")
    assert not case.has("class_7")
    weighted = CaseData(
        "w", torch.zeros(1, 1, 1, 2), weight_cumsums={"a": torch.tensor([0.0, 2.0]), "b": torch.zeros(2)}
    )
    assert weighted.has("weight_a")
    assert not weighted.has("weight_b")
    assert not weighted.has("weight_c")


def test_memory_mapped_cases_are_opened_when_needed_and_kept_within_bounds(make_case):
    loaders, opened = counting([make_case(str(n)) for n in range(3)])
    source = MemoryMappedSource(loaders, keep_open=2)
    assert len(source) == 3
    assert opened == []
    assert source[0] is source[0]
    assert opened == [0]
    assert source[1].name == "1"
    assert source[2].name == "2"
    assert source[0].name == "0"
    assert opened == [0, 1, 2, 0]


def test_a_memory_mapped_source_copies_nothing(make_case):
    case = make_case()
    assert MemoryMappedSource([lambda: case])[0].channels_CIJK.data_ptr() == case.channels_CIJK.data_ptr()


def test_what_a_case_has_is_asked_once(make_case):
    loaders, opened = counting([make_case("0"), make_case("1", lesion=False)])
    source = MemoryMappedSource(loaders, keep_open=1)
    for _ in range(2):
        assert [source.has(n, "foreground") for n in range(2)] == [True, False]
    assert opened == [0, 1]


def test_a_device_source_copies_and_drops_the_least_recently_used(make_case):
    cases = [make_case(str(n)) for n in range(3)]
    source = DeviceSource(
        MemoryMappedSource([lambda c=c: c for c in cases]), device="cpu", memory_gb=2.5 * cases[0].num_bytes() / 1e9
    )
    first, second = source[0], source[1]
    assert first.channels_CIJK.data_ptr() != cases[0].channels_CIJK.data_ptr()
    assert first.labels_IJK.data_ptr() != cases[0].labels_IJK.data_ptr()
    assert torch.equal(first.channels_CIJK, cases[0].channels_CIJK)
    assert first.centers["roi"] is cases[0].centers["roi"]
    assert source[0] is first
    assert source[2].name == "2"
    assert source[0] is first
    assert source[1] is not second
    assert source.has(1, "foreground")
    assert len(source) == 3


def test_a_case_larger_than_the_budget_is_used_and_not_kept(make_case):
    case = make_case()
    source = DeviceSource(MemoryMappedSource([lambda: case]), device="cpu", memory_gb=1e-9)
    assert source[0].name == "a"
    assert source[0] is not source[0]
