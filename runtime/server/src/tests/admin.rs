//! The listener for administration: who gets in, what it can do, and that clients never see it.

use serde_json::{Value, json};

use super::client::{Client, serve};
use super::scripted::{Numbers, ScriptedDecoder, script};
use crate::routes::{ADMIN_ROUTES, Access, ROUTES};
use crate::{KeyFile, Options, Scope, ServerError, verify_audit};

fn started(folder: &std::path::Path) -> (Client, String, String) {
    let path = folder.join("keys.json");
    let mut file = KeyFile::open_or_new(&path).unwrap();
    let admin = file.add("root", [Scope::Admin].into(), None).unwrap();
    let agent = file.add("agent", [Scope::Infer, Scope::Metrics].into(), None).unwrap();
    file.save().unwrap();
    let (keys, audit) = (Some(path), Some(folder.join("audit.jsonl")));
    let options = Options { keys, audit, admin: Some(([127, 0, 0, 1], 0).into()), ..Options::loopback(0) };
    (serve(ScriptedDecoder::new(Numbers::OneToken, script()), options), admin, agent)
}

#[test]
fn every_route_for_administration_has_a_scope_and_no_other_key_opens_it() {
    let folder = tempfile::tempdir().unwrap();
    let (client, admin, agent) = started(folder.path());
    let open: Vec<&str> = ADMIN_ROUTES.iter().filter(|it| it.access == Access::Open).map(|it| it.path).collect();
    assert_eq!(open, ["/live", "/ready"]);
    for route in ADMIN_ROUTES.iter().filter(|it| it.access == Access::Needs(Scope::Admin)) {
        assert!(!ROUTES.iter().any(|it| it.path == route.path), "clients see {}", route.path);
        let url = client.admin_url(route.path);
        assert_eq!(client.with_key(&url, &agent, None).0, 403, "{}", route.path);
        assert_eq!(client.with_key(&url, "fsq_none", None).0, 401, "{}", route.path);
        assert_eq!(client.with_key(&client.url(route.path), &admin, None).0, 404, "{}", route.path);
    }
    assert_eq!(client.with_key(&client.admin_url("/metrics"), &agent, None).0, 200);
    assert_eq!(client.with_key(&client.admin_url("/v1/models"), &agent, None).0, 404);
    client.stop();
}

#[test]
fn keys_are_listed_and_revoked_and_that_is_on_record() {
    let folder = tempfile::tempdir().unwrap();
    let (client, admin, agent) = started(folder.path());
    let (status, text) = client.with_key(&client.admin_url("/admin/keys"), &admin, None);
    let listed: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &listed["data"][1]["name"]), (200, &json!("agent")));
    assert!(!text.contains("sha256") && !text.contains(&agent[4..]), "{text}");
    let models = client.url("/v1/models");
    assert_eq!(client.with_key(&models, &agent, None).0, 200);
    let revoke = |body: Value| client.with_key(&client.admin_url("/admin/keys/revoke"), &admin, Some(&body)).0;
    assert_eq!(
        (revoke(json!({"name": "nobody"})), revoke(json!({})), revoke(json!({"name": "agent"}))),
        (404, 400, 200)
    );
    assert_eq!(client.with_key(&models, &agent, None).0, 401);
    assert_eq!(KeyFile::open(&folder.path().join("keys.json")).unwrap().keys().len(), 1);
    let (_, text) = client.with_key(&client.admin_url("/admin/policy"), &admin, None);
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["limits"]["jobs_max"], 64);
    client.stop();
    let log = std::fs::read_to_string(folder.path().join("audit.jsonl")).unwrap();
    assert!(log.contains("\"revoked\":\"agent\""), "{log}");
    verify_audit(&folder.path().join("audit.jsonl")).unwrap();
}

#[test]
fn administration_can_stop_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let (client, admin, _) = started(folder.path());
    assert_eq!(client.with_key(&client.admin_url("/admin/drain"), &admin, Some(&json!({}))).0, 200);
    client.server().wait().unwrap();
}

#[test]
fn administration_stays_on_this_machine() {
    let options = Options { admin: Some(([0, 0, 0, 0], 0).into()), ..Options::loopback(0) };
    let policy = super::scripted::policy(ScriptedDecoder::new(Numbers::OneToken, script()));
    let error = crate::Server::start(policy, options).unwrap_err();
    assert!(matches!(error, ServerError::AdminNotLoopback { .. }), "{error}");
}
