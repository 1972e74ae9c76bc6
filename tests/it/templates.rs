//! Chat templates of many policies against Jinja2 as transformers sets it up.

use fsq_model::{ChatTemplate, Message};
use serde_json::{Map, Value, json};

use crate::oracle;
use crate::tree::root;

/// 14 November 2023.
const NOW: i64 = 1_700_000_000;

/// Templates that cannot be compared, and why.
const INCOMPARABLE: &[(&str, &str)] =
    &[("meetkai-functionary-medium-v3.1", "adds to `|safe` texts, where Jinja2 writes what is added as HTML")];

/// Variables of each rendering; every one has `messages`, `bos_token`, `eos_token` and `add_generation_prompt`.
fn contexts() -> Vec<Value> {
    let tool = json!({"type": "function", "function": {"name": "add", "description": "Adds <b>two</b> numbers.",
        "parameters": {"type": "object", "required": ["a"], "properties": {
            "a": {"type": "integer", "description": "é"}, "b": {"type": "number", "default": 1.5}}}}});
    let system = json!({"role": "system", "content": "Be brief."});
    let user = json!({"role": "user", "content": " What is 2 + 3? <|im_end|> 'quoted' \"twice\" "});
    let assistant = json!({"role": "assistant", "content": "<think>\nhm\n</think>\n\nIt is 5."});
    let again = json!({"role": "user", "content": "Sure?"});
    let call = json!({"role": "assistant", "content": "", "tool_calls": [{"id": "abcdefghi", "type": "function",
        "function": {"name": "add", "arguments": {"a": 2, "b": 3.0, "c": null, "d": [true, "x\ny"]}}}]});
    let answer = json!({"role": "tool", "content": "{\"sum\": 5}", "name": "add", "tool_call_id": "abcdefghi"});
    let with = |messages: &[&Value], prompt: bool, more: Value| {
        let mut context = json!({"messages": messages, "add_generation_prompt": prompt, "bos_token": "<s>",
            "eos_token": "</s>"});
        let fields = context.as_object_mut().unwrap();
        fields.extend(more.as_object().unwrap().clone());
        context
    };
    let none = json!({});
    vec![
        with(&[&user], true, none.clone()),
        with(&[&user], false, none.clone()),
        with(&[&system, &user], true, none.clone()),
        with(&[&user, &assistant, &again], true, none.clone()),
        with(&[&system, &user, &assistant, &again, &assistant], false, none.clone()),
        with(&[&user, &again], true, none.clone()),
        with(&[&assistant], true, none.clone()),
        with(&[&json!({"role": "judge", "content": "x"})], true, none),
        with(&[&system, &user], true, json!({"tools": [tool]})),
        with(&[&system, &user, &call, &answer], true, json!({"tools": [tool]})),
        with(&[&user, &call, &answer, &assistant, &again], true, json!({"tools": [tool, tool]})),
        with(&[&user], true, json!({"enable_thinking": false, "date_string": "1 Jan 2024", "tools": null})),
    ]
}

/// What fsq makes of a context; `None` where the template refuses it.
fn render(template: &ChatTemplate, context: &Value) -> Result<String, String> {
    let mut fields: Map<String, Value> = context.as_object().unwrap().clone();
    let messages: Vec<Message> = serde_json::from_value(fields.shift_remove("messages").unwrap()).unwrap();
    let prompt = fields.shift_remove("add_generation_prompt").unwrap().as_bool().unwrap();
    template.render_with(&messages, prompt, fields).map_err(|it| it.to_string())
}

#[test]
fn templates_render_as_jinja2_does() {
    let folder = oracle::vocabularies().join("templates");
    let mut paths: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}: run `tests/run`, which unpacks it", folder.display()))
        .map(|it| it.unwrap().path())
        .filter(|it| it.extension().is_some_and(|it| it == "jinja"))
        .collect();
    paths.sort();
    let mut templates: Vec<(String, String)> = Vec::new();
    for path in &paths {
        let name = path.file_stem().unwrap().to_str().unwrap().to_string();
        templates.push((name, std::fs::read_to_string(path).unwrap()));
    }
    templates.extend(OWN.iter().map(|(name, source)| ((*name).to_string(), (*source).to_string())));
    for family in ["Llama-3", "Qwen2.5", "Qwen3", "Mistral", "gemma", "Phi-3"] {
        assert!(templates.iter().any(|it| it.0.contains(family)), "no template of {family} in {}", folder.display());
    }
    let (contexts, mut n_equal, mut n_refused, mut n_lenient) = (contexts(), 0, 0, 0);
    let sources: Vec<&String> = templates.iter().map(|it| &it.1).collect();
    let request = json!({"templates": sources, "contexts": contexts, "now": NOW});
    let script = root().join("tests/oracle/jinja_render.py");
    let answers: Vec<Vec<Value>> =
        serde_json::from_str(&oracle::python(&[script.to_str().unwrap()], &request.to_string())).unwrap();
    let mut findings = Vec::new();
    for ((name, source), answers) in templates.iter().zip(&answers) {
        if INCOMPARABLE.iter().any(|it| name.contains(it.0)) {
            continue;
        }
        let template = match ChatTemplate::new(source, "<s>", "</s>") {
            Ok(template) => template.at(NOW),
            Err(error) => {
                findings.push(format!("{name}: {error}"));
                continue;
            }
        };
        for (index, (context, expected)) in contexts.iter().zip(answers).enumerate() {
            match (render(&template, context), expected["text"].as_str()) {
                (Ok(found), Some(expected)) if found == expected => n_equal += 1,
                (Err(_), None) => n_refused += 1,
                // Not the template's refusal but Python's: a loop over null, a lazy list in JSON.
                (Ok(_), None) if answers[index]["error"].as_str().unwrap().starts_with("TypeError") => n_lenient += 1,
                (found, _) => findings.push(format!("{name}, context {index}: expected {expected}, found {found:?}")),
            }
        }
    }
    println!(
        "{} templates: {n_equal} texts equal, {n_refused} refused by both, {n_lenient} by Python",
        templates.len()
    );
    assert!(findings.is_empty(), "{} differences:\n{}", findings.len(), findings.join("\n"));
}

/// What templates do that the unpacked ones do not all do: Gemma 3's way with roles and parts, and the filters.
const OWN: &[(&str, &str)] = &[
    (
        "gemma 3",
        "{{ bos_token }}\n{%- if messages[0]['role'] == 'system' -%}\n    {%- if messages[0]['content'] is string -%}\n\
         {%- set first = messages[0]['content'] + '\n\n' -%}\n{%- else -%}\n\
         {%- set first = messages[0]['content'][0]['text'] + '\n\n' -%}\n{%- endif -%}\n\
         {%- set rest = messages[1:] -%}\n{%- else -%}\n{%- set first = '' -%}\n{%- set rest = messages -%}\n\
         {%- endif -%}\n{%- for message in rest -%}\n\
         {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}\n\
         {{ raise_exception('roles must alternate') }}\n{%- endif -%}\n\
         {%- if (message['role'] == 'assistant') -%}{%- set role = 'model' -%}{%- else -%}\n\
         {%- set role = message['role'] -%}{%- endif -%}\n\
         {{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') }}\n\
         {%- if message['content'] is string -%}\n{{ message['content'] | trim }}\n\
         {%- elif message['content'] is iterable -%}\n{%- for item in message['content'] -%}\n\
         {%- if item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}\n{%- endfor -%}\n{%- else -%}\n\
         {{ raise_exception('no content') }}\n{%- endif -%}\n{{ '<end_of_turn>\n' }}\n{%- endfor -%}\n\
         {%- if add_generation_prompt -%}\n{{'<start_of_turn>model\n'}}\n{%- endif -%}\n",
    ),
    (
        "layouts",
        "{{ messages | tojson }}{{ messages | tojson(indent=4) }}{{ messages | tojson(sort_keys=true) }}\
         {{ messages | tojson(ensure_ascii=true, separators=(',', ':')) }}\n{{ [1.0, 1e20, 1e-9, -3] | tojson }}\n\
         {% for m in messages if m.role != 'tool' %}{{ loop.index }}/{{ loop.length }}{{ m.role.upper() }}\
         {% if loop.last %}{% break %}{% endif %}{% if m.role == 'user' %}{% continue %}{% endif %}!{% endfor %}\n\
         {{ strftime_now('%Y-%m-%d %H:%M %j %A %-d %e %p') }}{{ true }}{{ none }}{{ 1.0 }}{{ 'a' ~ 1 }}",
    ),
];
