//! `/v1/foresight` and `/v1/outcomes`: plans, the one chosen, and what became of them.

use fsq_calibrate::gates::Confidence;
use fsq_calibrate::metrics::Outcome;
use fsq_calibrate::recalibration::{Family, RecalibrationMap, RecalibrationMaps};
use fsq_calibrate::stored::StoredThreshold;
use fsq_calibrate::threshold::ActThreshold;
use serde_json::{Value, json};

use super::client::{Client, client, serve};
use super::scripted::{Numbers, ScriptedDecoder, plan, policy, script};
use crate::{Options, Server};

const PATH: &str = "/v1/foresight";

fn plans(answer: &Value) -> &Vec<Value> {
    answer["plans"].as_array().unwrap()
}

fn check_plan(it: &Value, estimate_of: impl Fn(f64) -> f64) {
    if it["action"].is_null() {
        assert_eq!(it["text"], "<imaginary>c leads astray");
        assert!(it["error"].is_string() && it["prediction_id"].is_null() && it["estimate"].is_null());
        return;
    }
    let action = it["action"].as_str().unwrap();
    // (3 * 20 + 40) / 4 and (3 * 80 + 60) / 4, whichever was sampled.
    let (expected, sampled) = if action == "a" { (0.25, [0.2, 0.4]) } else { (0.75, [0.8, 0.6]) };
    let stated = it["stated"].as_f64().unwrap();
    assert!(sampled.contains(&stated));
    assert_eq!(it["text"], plan(action, (stated * 100.0).round() as u8));
    assert!((it["stated_expectation"].as_f64().unwrap() - expected).abs() < 1e-4, "{it}");
    assert!((it["estimate"].as_f64().unwrap() - estimate_of(expected)).abs() < 1e-4, "{it}");
}

#[test]
fn the_plan_of_the_highest_estimate_is_chosen_however_numbers_are_spelled() {
    for (numbers, n_pages) in [(Numbers::OneToken, 4096), (Numbers::Bytes, 4096), (Numbers::Bytes, 80)] {
        let decoder = ScriptedDecoder::new(numbers, script()).with_pages(n_pages);
        let client = serve(decoder, Options::loopback(0));
        let answer = client.ask(PATH, &json!({"state": "state", "plans": 16, "seed": 3}));
        let plans = plans(&answer);
        assert_eq!(plans.len(), 16);
        plans.iter().for_each(|it| check_plan(it, |stated| stated));
        let first = |action: &str| plans.iter().position(|it| it["action"] == action);
        assert!(first("a").is_some() && plans.iter().any(|it| it["action"].is_null()), "{answer}");
        assert_eq!(answer["chosen"], json!(first("b").unwrap()));
        for (index, plan) in plans.iter().enumerate() {
            let earlier = plan["action"].as_str().and_then(first).filter(|it| *it < index);
            assert_eq!(plan["same_action_as"], json!(earlier));
        }
        let again = client.ask(PATH, &json!({"state": "state", "plans": 16, "seed": 3}));
        let texts = |it: &Value| self::plans(it).iter().map(|it| it["text"].clone()).collect::<Vec<_>>();
        assert_eq!(texts(&answer), texts(&again));
        assert_eq!(client.watch.n_open.load(std::sync::atomic::Ordering::SeqCst), 0);
        client.stop();
    }
}

#[test]
fn estimates_come_from_the_map_and_an_unusable_policy_is_not_chosen_by() {
    // Success half as often as stated.
    let row = |it: u64| Outcome::new([0.25, 0.75][(it % 2) as usize], it % 8 < 2, it).unwrap();
    let outcomes: Vec<Outcome> = (0..400).map(row).collect();
    let map = RecalibrationMap::fit_family(Family::Platt, &outcomes).unwrap();
    let mut policy = policy(ScriptedDecoder::new(Numbers::OneToken, script()));
    policy.recalibration = RecalibrationMaps::overall(map.clone());
    policy.facts.confidence = Some(Confidence::Unusable);
    let watch = std::sync::Arc::clone(&policy.decoder.watch);
    let client = Client::new(Server::start(policy, Options::loopback(0)).unwrap(), watch);
    let answer = client.ask(PATH, &json!({"state": "state", "plans": 8, "seed": 1}));
    let estimate = |stated: f64| map.apply(fsq_calibrate::Stated::new(stated).unwrap()).value();
    assert!((estimate(0.75) - 0.75).abs() > 0.1);
    plans(&answer).iter().for_each(|it| check_plan(it, estimate));
    assert_eq!((&answer["chosen"], &answer["confidence"]), (&Value::Null, &json!("unusable")));
    assert!(answer["reason"].as_str().unwrap().contains("unusable"));
    client.stop();
}

#[test]
fn a_policy_is_chosen_by_where_its_estimates_hold() {
    let mut policy = policy(ScriptedDecoder::new(Numbers::OneToken, script()));
    policy.facts.confidence = Some(Confidence::Unusable);
    let judged = [("sums", Confidence::Unusable), ("searches", Confidence::Usable)];
    policy.facts.confidence_in = judged.map(|(name, found)| (name.to_owned(), found)).into();
    let watch = std::sync::Arc::clone(&policy.decoder.watch);
    let client = Client::new(Server::start(policy, Options::loopback(0)).unwrap(), watch);
    let ask = |environment: &str| json!({"state": "state", "plans": 8, "seed": 3, "environment": environment});
    let answer = client.ask(PATH, &ask("searches"));
    assert!(answer["chosen"].is_u64() && answer["confidence"] == "usable", "{answer}");
    let answer = client.ask(PATH, &ask("sums"));
    assert!(answer["chosen"].is_null() && answer["confidence"] == "unusable", "{answer}");
    let (status, refusal) = client.post(PATH, &ask("chess"));
    assert_eq!(status, 400);
    assert!(refusal.to_string().contains("searches, sums"), "{refusal}");
    client.stop();
}

#[test]
fn the_threshold_of_the_file_says_when_not_to_act() {
    let identity = RecalibrationMap::identity();
    let found = ActThreshold { threshold: 0.7, n: 90, n_followed: 40, n_failed: 1 };
    let serve = |found: Option<ActThreshold>, environment: Option<&str>| {
        let mut policy = policy(ScriptedDecoder::new(Numbers::OneToken, script()));
        let stored = StoredThreshold::of(found, 90, 0.1, 0.05, &identity);
        policy.facts.thresholds.insert(environment.map(str::to_owned), stored);
        policy.facts.confidence_in.insert("sums".to_owned(), Confidence::Usable);
        let watch = std::sync::Arc::clone(&policy.decoder.watch);
        Client::new(Server::start(policy, Options::loopback(0)).unwrap(), watch)
    };
    let ask = json!({"state": "state", "plans": 16, "seed": 3});
    let client = serve(Some(found), None);
    let answer = client.ask(PATH, &ask);
    let abstain = |action: &str| plans(&answer).iter().find(|it| it["action"] == action).unwrap()["abstain"].clone();
    assert_eq!((abstain("a"), abstain("b")), (json!(true), json!(false)), "25 % and 75 % against 70 %");
    assert!(answer["chosen"].is_u64() && answer["threshold"]["estimate_min"] == 0.7, "{answer}");
    let chat = json!({"messages": [{"role": "user", "content": "state"}], "seed": 3, "n": 8});
    let answer = client.ask("/v1/chat/completions", &chat);
    let read: Vec<&Value> = answer["choices"].as_array().unwrap().iter().map(|it| &it["fsq"]).collect();
    for it in read.iter().filter(|it| !it["estimate"].is_null()) {
        assert_eq!(it["abstain"], json!(it["estimate"].as_f64().unwrap() < 0.7), "{it}");
    }
    client.stop();
    for (found, environment) in [(None, None), (Some(ActThreshold { threshold: 0.8, ..found }), Some("sums"))] {
        let client = serve(found, environment);
        let mut ask = ask.clone();
        ask["environment"] = json!(environment);
        let answer = client.ask(PATH, &ask);
        assert!(answer["chosen"].is_null(), "{answer}");
        assert!(answer["reason"].as_str().unwrap().contains("better not to act"), "{answer}");
        client.stop();
    }
}

#[test]
fn a_map_that_knows_an_interval_shows_it() {
    let row = |it: u64| Outcome::new([0.25, 0.75][(it % 2) as usize], it % 8 < 2, it).unwrap();
    let outcomes: Vec<Outcome> = (0..400).map(row).collect();
    let map = RecalibrationMap::fit_family(Family::VennAbers, &outcomes).unwrap();
    let mut policy = policy(ScriptedDecoder::new(Numbers::OneToken, script()));
    policy.recalibration = RecalibrationMaps::overall(map);
    let watch = std::sync::Arc::clone(&policy.decoder.watch);
    let client = Client::new(Server::start(policy, Options::loopback(0)).unwrap(), watch);
    let answer = client.ask(PATH, &json!({"state": "state", "plans": 8, "seed": 1}));
    for it in plans(&answer).iter().filter(|it| !it["estimate"].is_null()) {
        let end = |name: &str| it["estimate_interval"][name].as_f64().unwrap();
        let estimate = it["estimate"].as_f64().unwrap();
        assert!(end("low") <= estimate && estimate <= end("high") && end("low") < end("high"), "{it}");
        assert!(it["abstain"].is_null(), "the file has no threshold");
    }
    client.stop();
}

#[test]
fn nothing_is_chosen_where_nothing_is_well_formed() {
    let client = client();
    let answer = client.ask(PATH, &json!({"messages": [{"role": "user", "content": "broken"}]}));
    assert_eq!((plans(&answer).len(), &answer["chosen"]), (4, &Value::Null));
    assert_eq!(answer["reason"], "no plan is well-formed");
    client.stop();
}

#[test]
fn candidates_are_gone_on_from() {
    let client = client();
    let whole = plan("a", 20);
    let span = &whole[..whole.find("20").unwrap()];
    let answer = client.ask(PATH, &json!({"state": "state", "candidates": [span, "b", "c"], "seed": 2}));
    let plans = plans(&answer);
    plans.iter().for_each(|it| check_plan(it, |stated| stated));
    let actions: Vec<_> = plans.iter().map(|it| it["action"].clone()).collect();
    assert_eq!(actions, [json!("a"), json!("b"), Value::Null]);
    assert_eq!(answer["chosen"], 1);
    client.stop();
}

#[test]
fn a_shared_prompt_runs_once() {
    let client = client();
    let state = "s".repeat(200);
    client.ask(PATH, &json!({"state": state, "plans": 1, "max_tokens": 1}));
    let one = client.watch.n_run.swap(0, std::sync::atomic::Ordering::SeqCst);
    client.ask(PATH, &json!({"state": state, "plans": 8, "max_tokens": 1}));
    let eight = client.watch.n_run.load(std::sync::atomic::Ordering::SeqCst);
    assert!(one >= 203 && eight == one, "{one} tokens ran for one plan, {eight} for eight");
    client.stop();
}

#[test]
fn outcomes_are_told_once_or_again_and_outlive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { outcomes: Some(folder.path().join("outcomes.jsonl")), ..Options::loopback(0) };
    let start = || serve(ScriptedDecoder::new(Numbers::OneToken, script()), options.clone());
    let client = start();
    let answer = client.ask(PATH, &json!({"state": "state", "plans": 8, "seed": 3}));
    let ids = plans(&answer).iter().filter_map(|it| it["prediction_id"].as_str()).collect::<Vec<_>>();
    let tell = |client: &Client, id: &str, outcome: Value| {
        let (status, answer) = client.post("/v1/outcomes", &json!({"prediction_id": id, "outcome": outcome}));
        (status, answer["is_new"].as_bool())
    };
    assert_eq!(tell(&client, ids[0], json!(1)), (200, Some(true)));
    assert_eq!(tell(&client, ids[0], json!(true)), (200, Some(false)));
    assert_eq!(tell(&client, ids[0], json!(0)), (409, None));
    assert_eq!(tell(&client, &format!("p_{:032x}", 7), json!(0)), (404, None));
    assert_eq!(tell(&client, "nonsense", json!(0)), (404, None));
    assert_eq!(tell(&client, ids[0], json!(2)), (400, None));
    let episode = |ids: Value| client.post("/v1/outcomes", &json!({"prediction_ids": ids, "outcome": 0}));
    assert_eq!(episode(json!([ids[2], ids[0]])).0, 409, "all or none");
    let (status, answer) = episode(json!([ids[2], ids[3]]));
    assert_eq!((status, &answer["n_new"]), (200, &json!(2)), "{answer}");
    assert_eq!((episode(json!([])).0, episode(json!([5])).0, episode(json!(["p_0"])).0), (400, 400, 404));
    client.stop();
    let client = start();
    assert_eq!(tell(&client, ids[0], json!(false)), (409, None));
    assert_eq!(tell(&client, ids[1], json!(false)), (200, Some(true)));
    let summary = client.get_json("/v1/outcomes/summary");
    assert_eq!((&summary["n_outcomes"], &summary["n_predictions"]), (&json!(4), &json!(ids.len())));
    assert_eq!((&summary["estimate"]["n"], &summary["stated"]["base_rate"]), (&json!(4), &json!(0.25)));
    assert!(client.get("/metrics").1.contains("fsq_outcomes 4\n"));
    client.stop();
}

#[test]
fn estimates_that_no_longer_hold_are_not_chosen_by() {
    let client = client();
    let ask = |task: usize| {
        let messages = json!([{"role": "system", "content": task.to_string()}, {"role": "user", "content": "state"}]);
        client.ask(PATH, &json!({"messages": messages, "plans": 4, "seed": task}))
    };
    let first = ask(0);
    assert_eq!((&first["chosen"].is_u64(), &first["drift"]), (&true, &json!({"n_episodes": 0, "alarmed": false})));
    // 25 % is stated for one plan and 75 % for the other, and nothing succeeds.
    let mut n_tasks = 0;
    loop {
        let answer = ask(n_tasks);
        if answer["drift"]["alarmed"] == true {
            break;
        }
        let ids: Vec<&Value> =
            plans(&answer).iter().map(|it| &it["prediction_id"]).filter(|it| !it.is_null()).collect();
        if !ids.is_empty() {
            client.ask("/v1/outcomes", &json!({"prediction_ids": ids, "outcome": 0}));
        }
        n_tasks += 1;
        assert!(n_tasks < 200, "{}", answer["drift"]);
    }
    let answer = ask(3);
    assert!(
        answer["drift"]["alarmed"] == true && answer["drift"]["evidence"].as_f64().unwrap() >= 50_000.0,
        "{answer}"
    );
    assert!(answer["chosen"].is_null() && answer["reason"].as_str().unwrap().contains("no longer hold"), "{answer}");
    assert!(client.get("/metrics").1.contains("fsq_drift_alarmed{environment=\"all\"} 1\n"));
    assert_eq!(client.get_json("/ready")["drift"]["all"]["alarmed"], true);
    assert_eq!(client.get_json("/v1/outcomes/summary")["drift"]["all"]["alarmed"], true);
    client.stop();
}
