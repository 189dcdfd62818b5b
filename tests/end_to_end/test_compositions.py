"""Compositions, named heads, skipped layers and the tasks of other heads, through the wire."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from make_adapters import make_adapter, make_fusion
from test_command_line import call

from adapterd import AsyncClient, Error, predict_request
from adapterd.v1 import adapters_pb2
from adapterd.v1 import inference_pb2 as v1
from server.app import App
from server.config import ServerConfig
from server.core import BaseInfo
from server.errors import InvalidInput

CLASSES = {"head_type": "classification", "num_labels": 3}
TEXT = "some text"  # 8 letters, with [CLS] and [SEP] 10 tokens
NUM_TOKENS = 10


@pytest.fixture
def adapters_path(tmp_path: Path, base_info: BaseInfo) -> Path:
    folder = tmp_path / "adapters"
    adapters = {
        "lang": ("seq_bn_inv[reduction_factor=4]", None),
        "a": ("seq_bn[reduction_factor=4]", CLASSES),
        "b": ("seq_bn[reduction_factor=8]", CLASSES),
        "c": ("par_bn[reduction_factor=4]", CLASSES),
        "low": ("lora[r=2]", CLASSES),
        "choose": ("seq_bn[reduction_factor=4]", {"head_type": "multiple_choice"}),
        "fill": ("seq_bn_inv[reduction_factor=4]", {"head_type": "masked_lm"}),
        "parse": ("seq_bn[reduction_factor=4]", {"head_type": "dependency_parsing", "num_labels": 3}),
        "next": ("seq_bn[reduction_factor=4]", {"head_type": "causal_lm"}),
    }
    for seed, (name, (config, head)) in enumerate(adapters.items()):
        make_adapter(folder / name, base_info, config=config, head=head, seed=seed)
    make_fusion(folder / "a,b", base_info, ["a", "b"], seed=50)
    make_fusion(folder / "second", base_info, ["b", "a"], seed=51, name="custom")
    make_adapter(folder / "saved" / "x", base_info, head=CLASSES, seed=60)
    make_adapter(folder / "saved" / "y", base_info, head=CLASSES, seed=61)
    make_fusion(folder / "saved" / "x,y", base_info, ["x", "y"], seed=62)
    leaves = [{"type": "single", "children": [name]} for name in ("x", "y")]
    setup = {"adapter_setup": {"type": "Fuse", "children": leaves, "kwargs": {}}, "head_setup": "y"}
    (folder / "saved" / "adapter_setup.json").write_text(json.dumps(setup))
    return folder


@pytest.fixture
def config(config: ServerConfig) -> ServerConfig:
    named = ("pair = Stack(lang, a)", "fused = Fuse(a, b) : b", "three = Parallel(a, b, pair)")
    return replace(config, cache=replace(config.cache, compositions=named))


async def answer(client: AsyncClient, adapter: str, **options: object) -> v1.Result:
    (result,) = (await client.predict(adapter, TEXT, return_logits=True, **options)).results  # type: ignore[arg-type]
    return result


def same(one: v1.Result, other: v1.Result) -> bool:
    assert one.logits.values and one.logits.shape == other.logits.shape
    return bool(np.allclose(one.logits.values, other.logits.values, atol=1e-5))


# compositions


async def test_a_stack_of_one_is_that_one(client: AsyncClient) -> None:
    assert same(await answer(client, "Stack(a)"), await answer(client, "a"))


async def test_a_stack_answers_by_its_last_member(client: AsyncClient) -> None:
    stacked = await answer(client, "Stack(b, a)")
    assert not same(stacked, await answer(client, "a"))
    assert same(stacked, await answer(client, "Stack(b, a)", heads="a"))


async def test_parallel_gives_what_each_gives_alone(client: AsyncClient) -> None:
    whole = await answer(client, "Parallel(a, b, Stack(lang, a), low)")
    assert whole.WhichOneof("result") is None
    assert [(one.adapter, one.head) for one in whole.parallel] == [
        ("a", "a"),
        ("b", "b"),
        ("Stack(lang, a)", "a"),
        ("low", "low"),
    ]
    for one in whole.parallel:
        assert same(one, await answer(client, one.adapter))
    assert whole.batch.num_samples == 1 and whole.num_tokens == NUM_TOKENS


async def test_an_average_lies_between_its_members(client: AsyncClient) -> None:
    first = await answer(client, "Average(a, b; 1, 0)", heads="a")
    assert same(first, await answer(client, "Average(a, b; 5, 0)", heads="a"))
    assert not same(first, await answer(client, "Average(a, b; 0, 1)", heads="a"))


async def test_a_composition_without_a_head_of_its_own_embeds(client: AsyncClient) -> None:
    (result,) = (await client.predict("Average(a, b)", TEXT)).results
    assert len(result.embedding.values) == 32


async def test_a_split_takes_lengths_that_add_up_to_the_input(client: AsyncClient) -> None:
    split = await answer(client, "Split(a, b; 4, 6)", heads="a")
    assert not same(split, await answer(client, "Split(a, b; 6, 4)", heads="a"))
    with pytest.raises(Error, match=r"add up to 7, and the input has 10 tokens") as error:
        await answer(client, "Split(a, b; 3, 4)", heads="a")
    assert error.value.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_fusion_is_found_by_its_members_its_name_and_its_folder(client: AsyncClient) -> None:
    fused = await answer(client, "Fuse(a, b)", heads="a")
    assert same(fused, await answer(client, "Fuse(a, b)", heads=["a"]))
    by_name = await answer(client, "Fuse(b, a; custom)", heads="a")
    assert same(by_name, await answer(client, "Fuse(b, a; second)", heads="a"))
    assert not same(fused, by_name)


async def test_a_fusion_that_is_not_there_is_not_found(client: AsyncClient) -> None:
    with pytest.raises(Error, match="no fusion is registered as 'b,c'") as error:
        await client.predict("Fuse(b, c)", TEXT)
    assert error.value.code is grpc.StatusCode.NOT_FOUND


async def test_a_fusion_alone_is_no_adapter(client: AsyncClient) -> None:
    with pytest.raises(Error, match=r"use it as Fuse\(b, a; second\)") as error:
        await client.predict("second", TEXT)
    assert error.value.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_unknown_members_are_told_as_unknown_adapters_are(client: AsyncClient) -> None:
    messages = []
    for expression in ("missing", "Stack(a, missing)", "Parallel(missing, b)"):
        with pytest.raises(Error) as error:
            await client.predict(expression, TEXT)
        assert error.value.code is grpc.StatusCode.NOT_FOUND
        messages.append(error.value.message)
    assert len(set(messages)) == 1


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("Stack(a, b", "expected '\\)'"),
        ("Mix(a, b)", "'Mix' is no composition"),
        ("BatchSplit(a, b)", "every request names its own adapter"),
        ("Fuse(a, Average(a, b))", "Average may not stand in a Fuse"),
        ("Stack(base, a)", "'base' is the base model alone"),
        ("Average(a, b; nan, 1)", "'nan' is not a weight"),
        ("Stack(Parallel(a, b), Parallel(a, b, c))", "as many members as each other"),
        ("Stack(" * 20 + "a" + ")" * 20, "nested more than 8 deep"),
        ("Parallel(" + ", ".join(["a"] * 200) + ")", "more than 128 adapters"),
    ],
)
async def test_what_is_no_composition_is_invalid(client: AsyncClient, expression: str, says: str) -> None:
    with pytest.raises(Error, match=says) as error:
        await client.predict(expression, TEXT)
    assert error.value.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_what_the_library_refuses_is_refused(client: AsyncClient) -> None:
    with pytest.raises(Error, match="Fuse takes bottleneck adapters") as error:
        await client.predict("Fuse(low, b; second)", TEXT)
    assert error.value.code is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_refused_composition_holds_nothing(client: AsyncClient, app: App) -> None:
    with pytest.raises(Error):
        await client.predict("Parallel(a, b, missing)", TEXT)
    with pytest.raises(Error):
        await client.predict("Split(a, b; 1, 1)", TEXT)
    assert (await client.unload("a")).host_bytes_freed >= 0  # would wait for a lease that is left
    app.adapters.check_integrity()


async def test_compositions_travel_in_batches_and_streams(client: AsyncClient) -> None:
    requests = [predict_request(name, TEXT, return_logits=True) for name in ("Stack(b, a)", "a", "Parallel(a, b)")]
    alone = [(await client.predict(request.adapter, TEXT, return_logits=True)).results[0] for request in requests]
    mixed = await client.predict_batch([*requests, predict_request("Stack(a, missing)", TEXT)])
    assert isinstance(mixed[3], Error)
    streamed = {number: one async for number, one in client.predict_stream(zip("012", requests, strict=True))}
    for number, want in enumerate(alone):
        for got in (mixed[number], streamed[str(number)]):
            assert not isinstance(got, Error)
            pairs = [(got.results[0], want)] if not want.parallel else zip(got.results[0].parallel, want.parallel)  # noqa: B905
            assert all(same(one, other) for one, other in pairs)


# names


async def test_named_compositions_answer_as_what_they_stand_for(client: AsyncClient) -> None:
    assert same(await answer(client, "pair"), await answer(client, "Stack(lang, a)"))
    assert same(await answer(client, "fused"), await answer(client, "Fuse(a, b)", heads="b"))
    assert same(await answer(client, "Stack(b, pair)"), await answer(client, "Stack(b, lang, a)"))
    assert [one.adapter for one in (await answer(client, "three")).parallel] == ["a", "b", "Stack(lang, a)"]


async def test_a_saved_setup_is_a_composition_with_its_own_members(client: AsyncClient) -> None:
    whole = await answer(client, "saved")
    assert same(whole, await answer(client, "Fuse(saved/x, saved/y)", heads="saved/y"))
    assert not same(whole, await answer(client, "saved/y"))


async def test_compositions_and_fusions_are_listed(client: AsyncClient) -> None:
    listed = {adapter.name: adapter async for adapter in client.list()}
    assert list(listed) == sorted(listed)
    assert listed.keys() >= {"a", "a,b", "fused", "pair", "saved", "saved/x", "saved/x,y", "second", "three"}
    assert (listed["pair"].method, listed["pair"].composition) == ("composition", "Stack(lang, a)")
    assert (listed["a,b"].method, listed["second"].composition) == ("fusion", "Fuse(b, a; second)")
    assert list((await client.get("fused")).heads) == ["b"]
    assert [adapter.name async for adapter in client.list("p")] == ["pair", "parse"]


async def test_a_composition_is_loaded_by_its_parts(client: AsyncClient) -> None:
    for move in (client.load, client.unload, client.pin):
        with pytest.raises(Error, match="'pair' is a composition and holds nothing itself; name its parts: lang, a"):
            await move("pair")
    assert (await client.load("saved/x")).adapter.method == "bottleneck"
    assert (await client.load("second")).adapter.method == "fusion"


async def test_a_new_fusion_is_found_by_load(client: AsyncClient, adapters_path: Path, base_info: BaseInfo) -> None:
    make_fusion(adapters_path / "late", base_info, ["b", "c"], seed=52)
    assert (await client.load("late")).adapter.composition == "Fuse(b, c; late)"
    assert (await answer(client, "Fuse(b, c)", heads="b")).logits.values


@pytest.mark.parametrize("named", [("bad = Stack(a, absent)", "unfused = Fuse(a, c)")])
async def test_a_composition_that_lacks_a_part_is_listed_with_the_reason(
    config: ServerConfig, named: tuple[str, ...]
) -> None:
    app = App(replace(config, cache=replace(config.cache, compositions=named)))
    await app.start()
    try:
        async with AsyncClient(f"127.0.0.1:{app.grpc_port}", max_retries=0) as client:
            assert "'absent'" in (await client.get("bad")).error
            assert "'a,c'" in {adapter.name: adapter.error async for adapter in client.list()}["unfused"]
            with pytest.raises(Error, match="no adapter is registered as 'absent'"):
                await client.predict("bad", TEXT)
    finally:
        await app.stop()


@pytest.mark.parametrize("text", ["a = Stack(b, c)", "x", "= Stack(a, b)", "x = Stack(a, b) :", "base = Stack(a, b)"])
async def test_a_composition_needs_a_name_of_its_own(config: ServerConfig, text: str) -> None:
    app = App(replace(config, cache=replace(config.cache, compositions=(text,))))
    with pytest.raises(InvalidInput, match="composition"):
        await app.start()


# heads and layers


async def test_several_heads_give_several_results(client: AsyncClient) -> None:
    whole = await answer(client, "a", heads=["a", "b"])
    assert [(one.adapter, one.head) for one in whole.parallel] == [("a", "a"), ("a", "b")]
    assert same(whole.parallel[0], await answer(client, "a"))
    assert same(whole.parallel[1], await answer(client, "a", heads="b"))


async def test_a_head_that_nobody_has_is_not_found(client: AsyncClient) -> None:
    with pytest.raises(Error, match="no head 'missing'; the adapters here have: a") as error:
        await client.predict("a", TEXT, heads="missing")
    assert error.value.code is grpc.StatusCode.NOT_FOUND


async def test_without_any_layer_an_adapter_is_its_head_on_the_base(client: AsyncClient) -> None:
    bare = await answer(client, "a", skip_layers=[0, 1])
    assert same(bare, await answer(client, "base", heads="a"))
    assert not same(bare, await answer(client, "a", skip_layers=[0]))


async def test_layers_that_the_base_lacks_are_invalid(client: AsyncClient) -> None:
    with pytest.raises(Error, match="skip_layers holds 2; the base has the layers 0 to 1") as error:
        await client.predict("a", TEXT, skip_layers=[2])
    assert error.value.code is grpc.StatusCode.INVALID_ARGUMENT


# tasks


async def test_choices_are_scored_together(client: AsyncClient) -> None:
    reply = await client.predict("choose", ["which one", "the other"], choices=["first", "second", "third"])
    for result in reply.results:
        choices = result.multiple_choice.choices
        assert sorted(item.index for item in choices) == [0, 1, 2]
        assert all(item.text == ("first", "second", "third")[item.index] for item in choices)
        assert sum(item.score for item in choices) == pytest.approx(1, abs=1e-6)
        assert [item.score for item in choices] == sorted((item.score for item in choices), reverse=True)
    (best,) = (await client.predict("choose", "which one", choices=["first", "second"], top_k=1)).results
    assert len(best.multiple_choice.choices) == 1


async def test_masks_are_filled_with_the_likeliest_tokens(client: AsyncClient) -> None:
    text = "so [MASK] te [MASK]"
    (result,) = (await client.predict("fill", text, return_logits=True)).results
    masks = result.fill_mask.masks
    assert [text[mask.start : mask.end] for mask in masks] == ["[MASK]", "[MASK]"]
    assert list(result.logits.shape) == [2, 70]
    logits = np.reshape(result.logits.values, (2, 70))
    for mask, own in zip(masks, logits, strict=True):
        assert [token.id for token in mask.tokens] == np.argsort(-own)[:5].tolist()
        assert all(token.text for token in mask.tokens)
    (one,) = (await client.predict("fill", text, top_k=1)).results
    assert [len(mask.tokens) for mask in one.fill_mask.masks] == [1, 1]


async def test_a_text_becomes_a_tree_of_its_words(client: AsyncClient) -> None:
    text = "one two, three"
    (result,) = (await client.predict("parse", text, return_logits=True)).results
    words = result.dependencies.words
    assert [word.text for word in words] == ["one", "two", ",", "three"]
    assert [text[word.start : word.end] for word in words] == [word.text for word in words]
    arcs = np.reshape(result.logits.values, (4, 5))
    assert [word.head for word in words] == arcs.argmax(axis=1).tolist()
    assert all(word.relation.startswith("LABEL_") and 0 < word.score <= 1 for word in words)


@pytest.mark.parametrize(
    ("adapter", "options", "says"),
    [
        ("choose", {}, "input 0 has no choices, and head 'choose' chooses among some"),
        ("a", {"choices": ["x", "y"]}, "input 0 has choices, and head 'a' answers no multiple-choice questions"),
        ("lang", {"choices": ["x", "y"]}, "input 0 has choices"),
        ("choose", {"choices": ["x", " "]}, r"inputs\[0\].choices\[1\] is empty"),
        ("fill", {}, "input 0 has no mask"),
    ],
)
async def test_inputs_that_a_head_cannot_read_are_invalid(
    client: AsyncClient, adapter: str, options: dict[str, list[str]], says: str
) -> None:
    with pytest.raises(Error, match=says) as error:
        await client.predict(adapter, TEXT, **options)  # type: ignore[arg-type]
    assert error.value.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_token_ids_have_no_words_and_no_choices(client: AsyncClient) -> None:
    with pytest.raises(Error, match="head 'parse' parses words; send text, not token ids"):
        await client.predict("parse", tokens=[[2, 10, 11, 3]])
    with pytest.raises(Error, match="head 'choose' chooses among some; send a text with choices"):
        await client.predict("choose", tokens=[[2, 10, 11, 3]])
    (filled,) = (await client.predict("fill", tokens=[[2, 10, 4, 3]])).results
    assert [(mask.start, mask.end) for mask in filled.fill_mask.masks] == [(2, 3)]


async def test_a_causal_language_model_is_refused_with_the_reason(client: AsyncClient) -> None:
    with pytest.raises(Error, match="head 'next' is a causal language model") as error:
        await client.predict("next", TEXT)
    assert error.value.code is grpc.StatusCode.FAILED_PRECONDITION
    assert same(await answer(client, "next", heads="a"), await answer(client, "Stack(next)", heads="a"))


async def test_tasks_are_listed(client: AsyncClient) -> None:
    for name, task in (
        ("choose", adapters_pb2.TASK_MULTIPLE_CHOICE),
        ("fill", adapters_pb2.TASK_FILL_MASK),
        ("parse", adapters_pb2.TASK_DEPENDENCY_PARSING),
    ):
        adapter = (await client.load(name)).adapter
        assert adapter.task == task and list(adapter.heads) == [name]


# command line


async def test_predict_takes_compositions_heads_and_choices(app: App) -> None:
    done = await call(app, "predict", "Parallel(a, Stack(lang, b))", TEXT, "--skip-layer", "0")
    assert done.exit_code == 0, done.output
    assert "Stack(lang, b)" in done.stdout and done.stdout.count("LABEL_") >= 2
    done = await call(app, "predict", "a", TEXT, "--head", "a", "--head", "b")
    assert "a > b" in done.stdout
    done = await call(app, "predict", "choose", TEXT, "--choice", "this", "--choice", "that")
    assert "this 0." in done.stdout and "that 0." in done.stdout
    assert "LABEL_" in (await call(app, "predict", "parse", TEXT)).stdout
    assert (await call(app, "predict", "fill", "so [MASK]")).exit_code == 0


async def test_list_shows_methods_and_compositions(app: App) -> None:
    shown = (await call(app, "list")).stdout
    assert "composition" in shown and "Stack(lang, a)" in shown and "fusion" in shown
