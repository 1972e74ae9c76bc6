//! Pieces below the routes: the place of the confidence, texts with stops, the encoding of what a policy said.

use fsq_model::{Decode, Special};

use super::scripted::{Numbers, ScriptedDecoder, plan, script, tokenizer};
use crate::confidence::GridAnswers;
use crate::prompt::encode_tagged;
use crate::sample::{AnswerText, TokenLogprob};

#[test]
fn the_confidence_is_read_where_its_tag_ends() {
    for (numbers, n_pages) in [(Numbers::OneToken, 4096), (Numbers::Bytes, 4096), (Numbers::Bytes, 30)] {
        let tokenizer = tokenizer(numbers);
        let mut decoder = ScriptedDecoder::new(numbers, script()).with_pages(n_pages);
        let prompt = tokenizer.encode("<|bos|><|user|>state<|assistant|>", Special::Parse);
        let answer = tokenizer.encode(&plan("b", 60), Special::Parse);
        let sequence = decoder.open_sequence();
        let tokens = [prompt.as_slice(), &answer].concat();
        let step = fsq_model::Step { sequence, tokens: &tokens, logits: fsq_model::LogitsFor::None, adapter: None };
        decoder.forward(&[step]).unwrap();
        let answers = GridAnswers::new(&tokenizer);
        let stated = answers.read(&mut decoder, &tokenizer, sequence, prompt.len(), &answer).unwrap().unwrap();
        assert!((stated.expectation().value() - 0.75).abs() < 1e-5);
        assert!((stated.mass()[16] - 0.75).abs() < 1e-5 && (stated.mass()[12] - 0.25).abs() < 1e-5);
        let nothing = answers.read(&mut decoder, &tokenizer, sequence, prompt.len(), &answer[..4]).unwrap();
        assert_eq!(nothing, None);
    }
}

#[test]
fn what_may_become_a_stop_text_is_held_back() {
    let tokenizer = tokenizer(Numbers::Bytes);
    let run = |text: &str, stops: &[&str]| {
        let mut answer = AnswerText::new("", stops.iter().map(ToString::to_string).collect());
        let mut pieces = Vec::new();
        for token in tokenizer.encode(text, Special::Parse) {
            let (piece, is_stopped) =
                answer.push(&tokenizer, TokenLogprob { token, logprob: 0.0, alternatives: vec![] });
            pieces.push(piece.text);
            if is_stopped {
                return (pieces.concat(), pieces);
            }
        }
        pieces.push(answer.finish().text);
        (pieces.concat(), pieces)
    };
    let (text, pieces) = run("aab-aabc!", &["aabc"]);
    assert_eq!((text.as_str(), &pieces[3]), ("aab-", &"aab-".to_string()));
    assert_eq!(run("é aa", &["aab", "ü"]).0, "é aa");
    assert_eq!(run("xéy", &["é"]).0, "x");
    assert_eq!(run("one<action>two", &["<action>"]).0, "one");
}

#[test]
fn only_the_tags_of_foresight_are_tokens_in_what_a_policy_said() {
    let tokenizer = tokenizer(Numbers::OneToken);
    let text = "<imaginary>é 55</imaginary><|end|>";
    let tokens = encode_tagged(&tokenizer, text);
    assert_eq!(tokens.len(), 1 + "é 55".len() + 1 + "<|end|>".len());
    assert_eq!(tokenizer.decode_with_special(&tokens), text);
}
