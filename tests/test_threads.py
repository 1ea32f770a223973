"""One fitted recommender, many threads: every answer comes from one state of model and catalogue."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from front_door_world import encode_first_word, write_world
from graphllmrec.models.baselines.item_knn import ItemKNN
from graphllmrec.recommender import Recommender

spec = spec_from_file_location("threads_benchmark", Path(__file__).parents[1] / "benchmarks" / "threads.py")
threads = sys.modules[spec.name] = module_from_spec(spec)
spec.loader.exec_module(threads)

SIGN = {"epochs": 1, "min_steps": 0, "batch_size": 16, "text_dim": 4, "hidden": 8}
MODELS = {
    "item-knn": {},
    "sign": SIGN,
    "hybrid": {"settings": {"sign": SIGN, "text-knn": {"text_dim": 4}}, "gate": {"epochs": 1, "min_steps": 0}},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("data") / "books")


@pytest.fixture(autouse=True)
def one_thread_of_torch_and_no_language_model(monkeypatch):
    monkeypatch.setattr("graphllmrec.text.prepare.encode_items", encode_first_word)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", list(MODELS))
def test_threads_that_read_and_add_see_whole_states_only(world, name):
    recommender = Recommender.from_recipe(name, model=MODELS[name]).fit(world)
    before = copy.copy(recommender)
    record = threads.run(recommender, seconds=0.5, threads=8, share_added=0.3)
    assert record.errors == []
    assert record.batches
    record.answers = record.answers[::10]
    assert record.answers
    assert threads.disagreements(before, recommender, record) == []


def test_a_reader_is_not_kept_waiting_and_sees_the_catalogue_before_or_after(world, monkeypatch):
    recommender = Recommender.from_recipe("item-knn").fit(world)
    inside, go_on = threading.Event(), threading.Event()
    grow = ItemKNN.with_items

    def slow(self, text):
        more = grow(self, text)
        inside.set()
        assert go_on.wait(10)
        return more

    monkeypatch.setattr(ItemKNN, "with_items", slow)
    adder = threading.Thread(target=recommender.add_items, args=([{"item_id": "new", "title": "x"}],))
    adder.start()
    assert inside.wait(10)
    assert len(recommender.recommend(history=["i1"], k=99, allow_seen=True)[0]) == 48
    assert recommender.dataset.num_items == 48
    go_on.set()
    adder.join()
    assert len(recommender.recommend(history=["i1"], k=99, allow_seen=True)[0]) == 49
    assert recommender.similar("new", k=3) is not None


def test_a_failed_addition_changes_nothing_and_leaves_the_lock_free(world, monkeypatch):
    recommender = Recommender.from_recipe("item-knn").fit(world)

    def fail(self, text):
        raise RuntimeError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(ItemKNN, "with_items", fail)
        with pytest.raises(RuntimeError, match="no room"):
            recommender.add_items([{"item_id": "new", "title": "x"}])
    assert recommender.dataset.num_items == 48
    recommender.add_items([{"item_id": "new", "title": "x"}])
    assert recommender.dataset.num_items == 49


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_copy_grows_on_its_own(world, copied):
    recommender = Recommender.from_recipe("item-knn").fit(world)
    other = copied(recommender)
    other.add_items([{"item_id": "new", "title": "x"}])
    assert (recommender.dataset.num_items, other.dataset.num_items) == (48, 49)
    assert other.recommend(users=["u1"], k=5) == recommender.recommend(users=["u1"], k=5)
