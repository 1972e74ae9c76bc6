//! `/v1/responses`: whole, in events, with tools, and what it does not remember.

use serde_json::{Value, json};

use super::client::{Client, client};

const PATH: &str = "/v1/responses";

fn look() -> Value {
    json!({"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}})
}

/// The data of all events, whose names are those of their data, numbered through.
fn events(client: &Client, mut body: Value) -> Vec<Value> {
    body["stream"] = json!(true);
    let text = client.text_of(PATH, &body);
    let mut found = Vec::new();
    for event in text.split("\n\n").filter(|it| it.contains("data:")) {
        let field = |name: &str| event.lines().find_map(|it| it.strip_prefix(name)).unwrap().trim();
        let data: Value = serde_json::from_str(field("data:")).unwrap();
        assert_eq!((&data["type"], &data["sequence_number"]), (&json!(field("event:")), &json!(found.len())));
        found.push(data);
    }
    found
}

fn kinds(events: &[Value]) -> Vec<&str> {
    let mut kinds: Vec<&str> = events.iter().filter_map(|it| it["type"].as_str()).collect();
    kinds.dedup();
    kinds
}

#[test]
fn a_response_says_what_a_chat_says_whole_and_in_events() {
    let client = client();
    let body = json!({"model": "scripted", "input": "hello", "instructions": "be kind", "temperature": 0});
    let whole = client.ask(PATH, &body);
    assert_eq!(
        (&whole["object"], &whole["status"], &whole["store"]),
        (&json!("response"), &json!("completed"), &json!(false))
    );
    let item = &whole["output"][0];
    assert_eq!((&item["type"], &item["role"]), (&json!("message"), &json!("assistant")));
    assert_eq!(item["content"][0]["text"], "Grüße, wörld! STOP here");
    assert_eq!(whole["usage"]["output_tokens"], 27);
    let events = events(&client, body);
    let expected = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ];
    assert_eq!(kinds(&events), expected);
    let said: String = events.iter().filter_map(|it| it["delta"].as_str()).collect();
    assert_eq!(said, "Grüße, wörld! STOP here");
    let last = &events.last().unwrap()["response"];
    assert_eq!(
        (&last["usage"]["total_tokens"], &last["output"][0]["content"]),
        (&whole["usage"]["total_tokens"], &item["content"])
    );
    let short = client.ask(PATH, &json!({"input": "hello", "max_output_tokens": 3}));
    assert_eq!(short["status"], "incomplete");
    assert_eq!(short["incomplete_details"]["reason"], "max_output_tokens");
    client.stop();
}

#[test]
fn calls_and_their_outputs_are_items() {
    let client = client();
    let body = json!({"input": [{"role": "user", "content": "weather"}], "tools": [look()], "temperature": 0});
    let whole = client.ask(PATH, &body);
    let (message, call) = (&whole["output"][0], &whole["output"][1]);
    assert_eq!(message["content"][0]["text"], "One moment.");
    assert_eq!((&call["type"], &call["name"]), (&json!("function_call"), &json!("look")));
    assert_eq!(call["arguments"], "{\"unit\":\"C\"}");
    let events = events(&client, body);
    let done = events.iter().find(|it| it["type"] == "response.function_call_arguments.done").unwrap();
    assert_eq!((&done["arguments"], &done["output_index"]), (&call["arguments"], &json!(1)));
    let output = json!({"type": "function_call_output", "call_id": call["call_id"], "output": "rain"});
    let user = json!({"type": "message", "role": "user", "content": [{"type": "input_text", "text": "weather"}]});
    let answer =
        client.ask(PATH, &json!({"input": [user, message, call, output], "tools": [look()], "temperature": 0}));
    assert_eq!(answer["output"][0]["content"][0]["text"], "You said: rain");
    client.stop();
}

#[test]
fn nothing_is_remembered_and_whoever_asks_for_it_hears_so() {
    let client = client();
    let cases = [
        (json!({"store": true}), "unsupported_value"),
        (json!({"background": true}), "unsupported_value"),
        (json!({"previous_response_id": "resp_1"}), "unsupported_value"),
        (json!({"conversation": "conv_1"}), "unsupported_value"),
        (json!({"include": ["message.output_text.logprobs"]}), "unsupported_value"),
        (json!({"reasoning": {"effort": "high"}}), "unsupported_value"),
        (json!({"truncation": "auto"}), "unsupported_value"),
        (json!({"max_tokens": 3}), "unsupported_value"),
        (json!({"colour": "red"}), "unknown_field"),
        (json!({"input": []}), "invalid_value"),
        (json!({"input": [{"type": "item_reference", "id": "msg_1"}]}), "invalid_value"),
        (json!({"tools": [{"type": "web_search_preview"}]}), "unsupported_value"),
        (json!({"text": {"format": {"type": "xml"}}}), "invalid_value"),
    ];
    for (more, code) in cases {
        let mut body = json!({"input": "hello"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (status, answer) = client.post(PATH, &body);
        assert_eq!((status, &answer["error"]["code"]), (400, &json!(code)), "{more}");
    }
    assert_eq!(client.post(PATH, &json!({"input": "hello", "store": false, "include": []})).0, 200);
    client.stop();
}
