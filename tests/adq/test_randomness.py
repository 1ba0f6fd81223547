import threading

import torch

from adq.randomness import global_draws


def test_threads_draw_what_one_alone_draws():
    def draw(name):
        with global_draws(0, "test", name):
            return torch.cat([torch.rand(1) for _ in range(2000)])

    names = range(4)
    alone, found = [draw(name) for name in names], {}
    threads = [threading.Thread(target=lambda name=name: found.update({name: draw(name)})) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[name], alone[name]) for name in names)
    assert not torch.equal(alone[0], alone[1])


def test_the_global_generator_is_left_as_it_was():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with global_draws(0, "test"):
        torch.rand(10)
    assert torch.equal(torch.rand(4), expected)
