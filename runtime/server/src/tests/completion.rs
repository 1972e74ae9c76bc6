//! `/v1/completions`, `/tokenize` and `/detokenize`, and how logits are changed before a token is chosen.

use serde_json::{Value, json};

use super::client::{Client, client};

const PATH: &str = "/v1/completions";

/// Token ids of a chat with one message, which the scripted policy answers.
fn chat_tokens(client: &Client, user: &str) -> Value {
    client.ask("/tokenize", &json!({"messages": [{"role": "user", "content": user}]}))["tokens"].clone()
}

#[test]
fn token_ids_are_gone_on_from_as_they_are() {
    let client = client();
    let prompt = chat_tokens(&client, "hello");
    assert_eq!(prompt.as_array().unwrap().len(), 8);
    let answer = client.ask(PATH, &json!({"prompt": prompt, "max_tokens": 100, "temperature": 0}));
    assert_eq!(
        (&answer["object"], &answer["choices"][0]["text"]),
        (&json!("text_completion"), &json!("Grüße, wörld! STOP here"))
    );
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    let short = client.ask(PATH, &json!({"prompt": prompt, "temperature": 0}));
    assert_eq!(
        (&short["usage"]["completion_tokens"], &short["choices"][0]["finish_reason"]),
        (&json!(16), &json!("length"))
    );
    // A text cannot hold a control token: the policy sees no turn to answer and says nothing that the script knows.
    let text = client.ask(PATH, &json!({"prompt": "<|user|>hello<|assistant|>", "max_tokens": 3}));
    assert_eq!(text["usage"]["prompt_tokens"], 26);
    client.stop();
}

#[test]
fn several_prompts_make_several_answers_and_a_stream_says_the_same() {
    let client = client();
    let prompts = json!([chat_tokens(&client, "hello"), chat_tokens(&client, "state"), chat_tokens(&client, "x")]);
    let body = json!({"prompt": prompts, "n": 2, "seed": 4, "max_tokens": 300, "echo": true, "stop": ["zzz"]});
    let whole = client.ask(PATH, &body);
    let texts: Vec<&str> = whole["choices"].as_array().unwrap().iter().map(|it| it["text"].as_str().unwrap()).collect();
    assert_eq!(texts.len(), 6);
    assert!(texts[..2].iter().all(|it| *it == "helloGrüße, wörld! STOP here"), "{texts:?}");
    assert!(texts[4..].iter().all(|it| *it == "xYou said: x"), "{texts:?}");
    assert!(whole["choices"][2]["fsq"].is_object() && whole["choices"][4].get("fsq").is_none());
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": true});
    let mut chunks = client.stream_from(PATH, &streamed);
    assert_eq!(chunks.pop().unwrap()["usage"], whole["usage"]);
    for (index, text) in texts.iter().enumerate() {
        let of_choice = || chunks.iter().map(|it| &it["choices"][0]).filter(|it| it["index"] == index);
        assert_eq!(&of_choice().filter_map(|it| it["text"].as_str()).collect::<String>(), text);
        assert_eq!(of_choice().next_back().unwrap()["finish_reason"], whole["choices"][index]["finish_reason"]);
    }
    client.stop();
}

#[test]
fn log_probabilities_have_the_old_shape() {
    let client = client();
    let prompt = chat_tokens(&client, "hello");
    let body = json!({"prompt": prompt, "max_tokens": 3, "temperature": 0, "logprobs": 2});
    let logprobs = &client.ask(PATH, &body)["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"].as_array().unwrap().len(), 3);
    assert_eq!((&logprobs["tokens"][0], &logprobs["text_offset"]), (&json!("G"), &json!([0, 1, 2])));
    assert!(logprobs["token_logprobs"][0].as_f64().unwrap() > -0.01);
    assert_eq!(logprobs["top_logprobs"][0]["G"], logprobs["token_logprobs"][0]);
    client.stop();
}

#[test]
fn tokens_go_there_and_back() {
    let client = client();
    let answer = client.ask("/tokenize", &json!({"prompt": "ab<|end|>", "return_token_strs": true}));
    assert_eq!((&answer["count"], &answer["token_strs"][0]), (&json!(9), &json!("a")));
    let back = client.ask("/detokenize", &json!({"tokens": answer["tokens"]}));
    assert_eq!(back, json!({"prompt": "ab<|end|>"}));
    let chat = chat_tokens(&client, "hello");
    let back = client.ask("/detokenize", &json!({"tokens": chat}));
    assert_eq!(back, json!({"prompt": "<|bos|><|user|>hello<|assistant|>"}));
    client.stop();
}

#[test]
fn biases_and_penalties_change_what_is_chosen_and_not_what_is_reported() {
    let client = client();
    let ask = |more: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "babble"}], "temperature": 0, "max_tokens": 4});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = client.ask("/v1/chat/completions", &body);
        (answer["choices"][0]["message"]["content"].as_str().unwrap().to_string(), answer)
    };
    // Three in five begin with an `x`, one each with `1` and `2`.
    assert_eq!(ask(json!({})).0, "xxxx");
    let x = u32::from(b'x').to_string();
    let (text, answer) = ask(json!({"logit_bias": {x: -100}, "logprobs": true}));
    assert_eq!(text, "1");
    let logprob = answer["choices"][0]["logprobs"]["content"][0]["logprob"].as_f64().unwrap();
    assert!((logprob - 0.2_f64.ln()).abs() < 1e-4, "{logprob}");
    // `x` goes on with `x`, forty times as probable in logarithms as anything else.
    assert_eq!(ask(json!({"logit_bias": {u32::from(b'2').to_string(): 100}, "max_tokens": 1})).0, "2");
    client.stop();
}

#[test]
fn requests_keep_their_name_and_models_can_be_asked_for() {
    let client = client();
    let close = "host: localhost\r\nconnection: close\r\n";
    let (_, rest) = client.send_raw(&format!("GET /v1/models/scripted HTTP/1.1\r\n{close}x-request-id: mine\r\n\r\n"));
    assert!(rest.contains("x-request-id: mine\r\n") && rest.contains("\"id\":\"scripted\""), "{rest}");
    let (status, rest) = client.send_raw(&format!("GET /v1/models/other HTTP/1.1\r\n{close}\r\n"));
    assert!(status.contains("404") && rest.contains("x-request-id: req-"), "{status}{rest}");
    client.stop();
}
