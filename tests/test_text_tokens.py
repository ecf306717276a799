"""Encoding: what belongs to a prompt, what to a response, and what is counted."""

from __future__ import annotations

import math

import pytest
import torch

from preftune.policies.text import TextResponses, encode
from preftune.policies.text.tokens import end_of_turn
from preftune.types import PreftuneError
from text_fixtures import Record, tiny_policy, tiny_records, tiny_tokenizer

EOS, START, END = 0, 1, 2


def test_a_template_renders_the_prompt_as_generation_does_and_its_turn_end_belongs_to_the_response() -> None:
    tokenizer = tiny_tokenizer()
    rows, counts = encode([Record("a", "say it", ["it", "not it"], ranked=True)], tokenizer)
    generation = tokenizer.apply_chat_template([{"role": "user", "content": "say it"}], add_generation_prompt=True)["input_ids"]
    assert list(rows.prompt[0]) == generation
    assert rows.response.tokens[0][0] == (*tokenizer("it")["input_ids"], END)
    assert all(END not in tokens[:-1] and tokens[-1] == END for tokens in rows.response.tokens[0])
    assert rows.ranked and counts["rows"] == 1 and counts["responses"] == 2
    assert rows.response.show() == [["it", "not it"]]


def test_without_a_template_the_prompt_is_plain_text_and_eos_ends_the_response() -> None:
    tokenizer = tiny_tokenizer(template=False)
    rows, _ = encode([Record("a", "say it", [" it"], system="be brief")], tokenizer)
    assert rows.prompt[0] == tuple(tokenizer("be brief\n\nsay it")["input_ids"])
    assert rows.response.tokens[0][0] == (*tokenizer(" it")["input_ids"], EOS)


def test_system_message_and_conversation_enter_the_template() -> None:
    tokenizer = tiny_tokenizer()
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}, {"role": "user", "content": "say it"}]
    rows, _ = encode([Record("a", talk, ["it"], system="be brief")], tokenizer)
    text = tokenizer.decode(rows.prompt[0])
    assert text.startswith("<|im_start|>system\nbe brief<|im_end|>") and text.endswith("say it<|im_end|>\n<|im_start|>assistant\n")
    with pytest.raises(PreftuneError, match="no chat template"):
        encode([Record("a", talk, ["it"])], tiny_tokenizer(template=False))


def test_a_template_without_special_turn_end_falls_back_to_eos_and_no_eos_at_all_is_an_error() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    assert end_of_turn(tokenizer) == EOS
    tokenizer.eos_token = None
    with pytest.raises(PreftuneError, match="no eos token"):
        end_of_turn(tokenizer)


def test_a_tokenizer_that_adds_bos_and_eos_keeps_the_bos_and_loses_the_eos() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer(template=False, bos=True)
    pieces = [("<|im_start|>", START), ("<|endoftext|>", EOS)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|im_start|> $A <|endoftext|>", special_tokens=pieces)
    rows, counts = encode([Record("a", "say it", [" now"])], tokenizer)
    assert rows.prompt[0][0] == START and EOS not in rows.prompt[0]
    assert rows.response.tokens[0][0].count(EOS) == 1 and START not in rows.response.tokens[0][0]
    assert counts["joint_differs"] == 0


def test_an_empty_prompt_becomes_bos_or_an_error() -> None:
    rows, _ = encode([Record("a", "", ["it"])], tiny_tokenizer(template=False, bos=True))
    assert rows.prompt[0] == (START,)
    with pytest.raises(PreftuneError, match="row a.*no bos"):
        encode([Record("a", "", ["it"])], tiny_tokenizer(template=False))


def test_rows_whose_joint_tokenisation_differs_are_counted() -> None:
    """Plain text: "that i" + "s" merges across the border, "the" + " object" does not."""
    tokenizer = tiny_tokenizer(template=False)
    merged = Record("a", "that i", ["s so", "mm"])
    apart = Record("b", "the", [" object", " list"])
    assert tokenizer("that is so")["input_ids"] != tokenizer("that i")["input_ids"] + tokenizer("s so")["input_ids"]
    assert encode([merged, apart, merged], tokenizer)[1]["joint_differs"] == 2
    assert encode([merged, apart, merged], tiny_tokenizer())[1]["joint_differs"] == 0  # the template ends the prompt with a new line


def test_truncation_cuts_prompts_left_and_responses_right_and_counts_both() -> None:
    tokenizer = tiny_tokenizer(template=False, bos=True)
    record = Record("a", "the value of this object", [" is a list of names", " no"])
    whole, _ = encode([record], tokenizer)
    cut, counts = encode([record], tokenizer, max_prompt=3, max_response=4)
    assert cut.prompt[0] == whole.prompt[0][-3:]
    long, short = cut.response.tokens[0]
    assert long == whole.response.tokens[0][0][:4] and long[-1] != EOS
    assert short == whole.response.tokens[0][1] and short[-1] == EOS
    assert counts["prompt_truncated"] == 1 and counts["response_truncated"] == 1
    one, _ = encode([record], tokenizer, max_response=1)
    assert [len(tokens) for tokens in one.response.tokens[0]] == [1, 1]
    with pytest.raises(PreftuneError, match="at least one token"):
        encode([record], tokenizer, max_response=0)


def test_a_leading_bos_survives_left_truncation() -> None:
    tokenizer = tiny_tokenizer(bos=True)  # the template begins with the bos token
    rows, _ = encode([Record("a", "the value of this object", ["x"])], tokenizer, max_prompt=6)
    whole, _ = encode([Record("a", "the value of this object", ["x"])], tokenizer)
    assert rows.prompt[0] == (START, *whole.prompt[0][-5:])


def test_pad_that_equals_eos_hides_nothing() -> None:
    plain, padded = tiny_tokenizer(template=False), tiny_tokenizer(template=False, pad_is_eos=True)
    assert padded.pad_token_id == padded.eos_token_id
    a, b = (tiny_policy(tokenizer=t) for t in (plain, padded))
    rows, _ = encode(tiny_records(), padded)
    assert all(tokens[-1] == EOS for row in rows.response.tokens for tokens in row)
    for budget in (0, 4096):
        a.network.tokens_per_batch = b.network.tokens_per_batch = budget
        assert torch.equal(a.score(rows).logp, b.score(rows).logp)
    lengths = torch.tensor([[len(tokens) for tokens in row] for row in rows.response.tokens])
    assert torch.equal(b.score(rows).length, lengths)
    values = b.score_tokens(rows)[0][0]
    assert values[-1] < 0 and len(values) == lengths[0, 0]  # the end's own log-probability is one of them


def test_labels_become_tensors_and_gaps_become_nan_or_absent() -> None:
    records = [
        Record("a", "x", ["1", "2", "3"], scores=[1.0, 2.0, 3.0], desirable=[True, False, True], weight=0.5),
        Record("b", "y", ["1"], prefer=0.75, desirable=[False], weight=1.5),
    ]
    rows, _ = encode(records, tiny_tokenizer())
    assert rows.present.tolist() == [[True, True, True], [True, False, False]]
    assert rows.score[0].tolist() == [1.0, 2.0, 3.0] and rows.score[1].isnan().all()
    assert math.isnan(rows.prefer[0]) and rows.prefer[1] == 0.75
    assert rows.desirable.tolist() == [[True, False, True], [False, False, False]]
    assert rows.weight.tolist() == [0.5, 1.5] and rows.weight.dtype == torch.float64
    assert rows.response.tokens[1][1:] == ((), ()) and not rows.ranked
    records[1].desirable = None
    with pytest.raises(PreftuneError, match="row b has no desirable"):
        encode(records, tiny_tokenizer())


def test_prompts_alone_can_be_encoded() -> None:
    rows, counts = encode([Record("a", "x", []), Record("b", "y", [])], tiny_tokenizer())
    assert rows.response is None and rows.present is None and counts["responses"] == 0


def test_responses_take_join_pack_and_fingerprint() -> None:
    y = TextResponses((((5,), (6, 7)), ((8, 9, 10), ())), (((-1.0,), (-2.0, -3.0)), ((-0.5, -0.25, -1.5), ())))
    assert y.shape == (2, 2)
    assert y.take(rows=[1, 0], columns=[1]).tokens == (((),), ((6, 7),))
    assert y.take([0]).join(y.take([0], [0])).tokens == (((5,), (6, 7), (5,)),)
    assert y.join(TextResponses(y.tokens)).logp is None
    assert TextResponses.unpack(y.pack()) == y
    assert y.fingerprint()[0][0] == y.take([0], [0]).fingerprint()[0][0] != y.fingerprint()[0][1]
    with pytest.raises(PreftuneError, match="cannot be joined"):
        y.join(y.take([0]))
    with pytest.raises(PreftuneError, match="no tokenizer"):
        y.show()
