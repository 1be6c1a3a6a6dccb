import pytest
import torch

from nnseg.model.chance import pass_seed, seeded

CPU = torch.device("cpu")


def test_what_is_drawn_follows_from_the_seed_and_not_from_what_was_drawn_before() -> None:
    found = []
    for _ in range(2):
        torch.rand(3)
        with seeded(7, CPU):
            found.append(torch.rand(2, 3, 4))
    with seeded(8, CPU):
        other = torch.rand(2, 3, 4)
    assert torch.equal(*found)
    assert not torch.equal(found[0], other)


@pytest.mark.parametrize("fails", [False, True])
def test_the_programs_own_numbers_go_on_as_if_nothing_had_been_drawn(fails: bool) -> None:
    before = torch.random.get_rng_state()
    try:
        with seeded(7, CPU):
            torch.rand(5)
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert fails
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_draws_by_the_seed_too_and_its_numbers_go_on() -> None:
    device = torch.device("cuda")
    before = torch.cuda.get_rng_state(device)
    found = []
    for _ in range(2):
        with seeded(7, device):
            found.append(torch.rand(2, 3, device=device))
    assert torch.equal(*found)
    assert torch.equal(torch.cuda.get_rng_state(device), before)


def test_every_part_of_its_key_makes_another_seed() -> None:
    keys = [
        (0, "0", 0, 0, 0),
        (1, "0", 0, 0, 0),
        (0, "1", 0, 0, 0),
        (0, "0", 1, 0, 0),
        (0, "0", 0, 1, 0),
        (0, "0", 0, 0, 1),
        (2**63 - 1, "all", 999, 250, 7),
    ]
    seeds = {pass_seed(*key) for key in keys}
    assert len(seeds) == len(keys)
    for seed in seeds:
        with seeded(seed, CPU):  # any that there may be is taken
            assert 0 <= float(torch.rand(())) < 1
