//! The HTTP API, asked without a network.

#![allow(clippy::unwrap_used)] // helpers of tests are tests

mod support;

use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode},
};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use support::{controller, keys, world};
use tower::ServiceExt as _;
use tradewind_controller::{AdminAccess, Controller};
use tradewind_wan::run_virtual;

/// Asks a controller without relays.
fn ask(admin: AdminAccess, request: Request<Body>) -> (StatusCode, Value) {
    run_virtual(1, |wan| async move {
        let hosts = world(&wan);
        let controller: Controller = controller(&hosts[1], &keys(&hosts[1]), admin);
        answer(controller.api(), request).await
    })
}

async fn answer(api: Router, request: Request<Body>) -> (StatusCode, Value) {
    let response = api.oneshot(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

fn get(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).unwrap()
}

fn post(authorization: Option<&str>, body: &str) -> Request<Body> {
    let mut request = Request::post("/v1/enrol-tokens").header("content-type", "application/json");
    if let Some(authorization) = authorization {
        request = request.header("authorization", authorization);
    }
    request.body(Body::from(body.to_owned())).unwrap()
}

fn closed(request: Request<Body>) -> (StatusCode, Value) {
    ask(AdminAccess::Closed, request)
}

#[test]
fn an_empty_network_is_shown_as_empty() {
    assert_eq!(
        closed(get("/v1/relays")),
        (StatusCode::OK, json!({"relays": []}))
    );
    assert_eq!(
        closed(get("/v1/edges")),
        (StatusCode::OK, json!({"edges": []}))
    );
    let (status, matrix) = closed(get("/v1/matrix"));
    assert_eq!((status, &matrix["names"]), (StatusCode::OK, &json!([])));
    let (status, version) = closed(get("/v1/version"));
    assert_eq!(
        (status, &version["name"]),
        (StatusCode::OK, &json!("tradewind-controller"))
    );
}

#[test]
fn what_cannot_be_answered_is_an_error_in_json() {
    for (path, status, word) in [
        ("/v1/plan", StatusCode::SERVICE_UNAVAILABLE, "no plan"),
        ("/v1/path", StatusCode::BAD_REQUEST, "`from`"),
        ("/v1/path?from=a", StatusCode::BAD_REQUEST, "`to`"),
        ("/v1/path?from=tokyo&to=b", StatusCode::NOT_FOUND, "`tokyo`"),
        ("/v1/nonsense", StatusCode::NOT_FOUND, "/v1/relays"),
        ("/v1/enrol-tokens", StatusCode::METHOD_NOT_ALLOWED, "POST"),
    ] {
        let (found, body) = closed(get(path));
        assert_eq!(found, status, "{path}");
        let error = body["error"].as_str().unwrap();
        assert!(error.contains(word), "{path}: {error}");
    }
    // What is refused before anybody has looked at it.
    let (status, body) = closed(post(None, &" ".repeat(3 << 20)));
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(body["error"].as_str().unwrap().contains("length limit"));
    let no_text = Request::delete("/v1/relays/%ff/quarantine");
    let (status, body) = closed(no_text.body(Body::empty()).unwrap());
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(body["error"].is_string());
}

#[test]
fn enrolment_tokens_are_made_for_those_who_show_the_secret_only() {
    let secret = || AdminAccess::Secret("open sesame".into());
    assert_eq!(
        closed(post(Some("Bearer open sesame"), "{}")).0,
        StatusCode::FORBIDDEN
    );
    assert_eq!(ask(secret(), post(None, "{}")).0, StatusCode::UNAUTHORIZED);
    assert_eq!(
        ask(secret(), post(Some("Bearer open"), "{}")).0,
        StatusCode::UNAUTHORIZED
    );
    let (status, body) = ask(
        secret(),
        post(Some("Bearer open sesame"), "{\"relay\": \"tokyo-1\"}"),
    );
    assert_eq!(status, StatusCode::CREATED);
    assert!(body["token"].as_str().unwrap().starts_with("twe1-"));
    assert_eq!(body["expires_in_s"], 3_600);
    assert_eq!(
        ask(AdminAccess::Open, post(None, "{}")).0,
        StatusCode::CREATED
    );
}

#[test]
fn bad_requests_for_tokens_say_what_is_wrong() {
    for (body, word) in [
        ("", "EOF"),
        ("{\"realy\": \"x\"}", "relay"),
        ("{\"relay\": \" x\"}", "name"),
        ("{\"lifetime_s\": 0}", "lifetime_s"),
    ] {
        let (status, answer) = ask(AdminAccess::Open, post(None, body));
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        let error = answer["error"].as_str().unwrap();
        assert!(error.contains(word), "{body}: {error}");
    }
    // A page in a browser cannot say that its form is JSON.
    let form = Request::post("/v1/enrol-tokens")
        .body(Body::from("{}"))
        .unwrap();
    assert_eq!(
        ask(AdminAccess::Open, form).0,
        StatusCode::UNSUPPORTED_MEDIA_TYPE
    );
}

fn send(method: &str, path: &str, kind: &str, body: &str) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", kind)
        .body(Body::from(body.to_owned()))
        .unwrap()
}

#[test]
fn a_policy_is_shown_tried_and_set_by_administrators_only() {
    let toml = "[[price]]\nuplink = 1\nper_gb = 0.25";
    run_virtual(1, |wan| async move {
        let hosts = world(&wan);
        let controller: Controller = controller(&hosts[1], &keys(&hosts[1]), AdminAccess::Open);
        let ask = |request| answer(controller.api(), request);
        let (_, shown) = ask(get("/v1/policy")).await;
        assert_eq!(shown["source"], "default");
        let dry = send("PUT", "/v1/policy?dry_run=true", "application/toml", toml);
        let (status, outcome) = ask(dry).await;
        assert_eq!(
            (status, &outcome["applied"]),
            (StatusCode::OK, &json!(false))
        );
        assert_eq!(outcome["effects"][0]["profile"], "realtime");
        assert_eq!(ask(get("/v1/policy")).await.1["source"], "default");
        let put = send("PUT", "/v1/policy", "application/toml", toml);
        assert_eq!(ask(put).await.1["applied"], true);
        let (_, shown) = ask(get("/v1/policy")).await;
        assert_eq!(
            (&shown["source"], &shown["policy"]["price"][0]["per_gb"]),
            (&json!("api"), &json!(0.25))
        );
        assert!(shown["toml"].as_str().unwrap().contains("per_gb = 0.25"));
        // What is shown can be set again.
        let again = send(
            "PUT",
            "/v1/policy",
            "application/json",
            &shown["policy"].to_string(),
        );
        assert_eq!(ask(again).await.0, StatusCode::OK);

        for (request, status, word) in [
            (
                send("PUT", "/v1/policy", "text/plain", toml),
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "application/toml",
            ),
            (
                send("PUT", "/v1/policy", "application/toml", "[[pricee]]"),
                StatusCode::BAD_REQUEST,
                "`price`",
            ),
            (
                send(
                    "PUT",
                    "/v1/policy",
                    "application/toml",
                    "[[price]]\nregion = \"xx\"\nper_gb = 1.0",
                ),
                StatusCode::BAD_REQUEST,
                "allow_unknown",
            ),
            (
                send(
                    "PUT",
                    "/v1/policy?dry_run=perhaps",
                    "application/toml",
                    toml,
                ),
                StatusCode::BAD_REQUEST,
                "dry_run",
            ),
            (
                send("POST", "/v1/pins", "application/json", "{\"from\": \"a\"}"),
                StatusCode::BAD_REQUEST,
                "to",
            ),
            (
                send("DELETE", "/v1/pins?from=a&to=b", "x", ""),
                StatusCode::CONFLICT,
                "no pin",
            ),
            (
                send(
                    "POST",
                    "/v1/relays/tokyo-1/quarantine",
                    "application/json",
                    "{}",
                ),
                StatusCode::NOT_FOUND,
                "tokyo-1",
            ),
            (
                send("DELETE", "/v1/relays/tokyo-1/decommission", "x", ""),
                StatusCode::CONFLICT,
                "not decommissioned",
            ),
            (
                send("POST", "/v1/rollout", "application/json", "{}"),
                StatusCode::BAD_REQUEST,
                "share",
            ),
            (
                send(
                    "POST",
                    "/v1/rollout",
                    "application/json",
                    "{\"share\": \"5\"}",
                ),
                StatusCode::BAD_REQUEST,
                "5%",
            ),
            (
                send(
                    "POST",
                    "/v1/rollout",
                    "application/json",
                    "{\"share\": \"5%\"}",
                ),
                StatusCode::SERVICE_UNAVAILABLE,
                "no plan",
            ),
            (
                send(
                    "POST",
                    "/v1/rollout",
                    "application/json",
                    "{\"rollback\": \"1.1\"}",
                ),
                StatusCode::CONFLICT,
                "not retained",
            ),
            (get("/v1/plans/1.1"), StatusCode::NOT_FOUND, "/v1/plans"),
            (get("/v1/plans?limit=x"), StatusCode::BAD_REQUEST, "limit"),
            (
                get("/v1/path?from=a&to=b&profile=fast"),
                StatusCode::BAD_REQUEST,
                "economy",
            ),
            (get("/v1/link?from=a"), StatusCode::BAD_REQUEST, "`to`"),
            (
                send("POST", "/v1/policy", "application/toml", toml),
                StatusCode::METHOD_NOT_ALLOWED,
                "PUT",
            ),
        ] {
            let asked = format!("{} {}", request.method(), request.uri());
            let (found, body) = ask(request).await;
            let error = body["error"].as_str().unwrap();
            assert!(error.contains(word), "{asked}: {error}");
            assert_eq!(found, status, "{asked}: {error}");
        }
        let held = send(
            "POST",
            "/v1/rollout",
            "application/json",
            "{\"hold\": true, \"reason\": \"x\"}",
        );
        assert!(ask(held).await.1["held"].as_str().unwrap().contains('x'));
        let (_, alerts) = ask(get("/v1/alerts")).await;
        assert_eq!(alerts["alerts"][0]["kind"], "hold");
        assert_eq!(ask(get("/v1/status")).await.1["policy_source"], "api");
    });
    for request in [
        send("PUT", "/v1/policy", "application/toml", toml),
        send("POST", "/v1/pins", "application/json", "{}"),
        send("DELETE", "/v1/pins?from=a&to=b", "x", ""),
        send("POST", "/v1/rollout", "application/json", "{}"),
        send("POST", "/v1/relays/a/quarantine", "application/json", "{}"),
        send("DELETE", "/v1/relays/a/quarantine", "x", ""),
        send(
            "POST",
            "/v1/relays/a/decommission",
            "application/json",
            "{}",
        ),
        send("DELETE", "/v1/relays/a/decommission", "x", ""),
    ] {
        let asked = format!("{} {}", request.method(), request.uri());
        assert_eq!(closed(request).0, StatusCode::FORBIDDEN, "{asked}");
    }
}

#[test]
fn tokens_are_revoked_and_lifted_by_administrators_only() {
    const PATH: &str = "/v1/revocations";
    let kind = "application/json";
    run_virtual(1, |wan| async move {
        let hosts = world(&wan);
        let controller: Controller = controller(&hosts[1], &keys(&hosts[1]), AdminAccess::Open);
        let ask = |request| answer(controller.api(), request);
        let user = "{\"app\": \"chat\", \"user\": \"eve\", \"reason\": \"left\"}";
        let (status, made) = ask(send("POST", PATH, kind, user)).await;
        assert_eq!(
            (status, &made["user"]),
            (StatusCode::CREATED, &json!("eve"))
        );
        assert_eq!(made["not_kept"], Value::Null);
        let until = made["until_unix_s"].as_u64().unwrap();
        let issued = made["issued_until_unix_s"].as_u64().unwrap();
        assert_eq!(until - issued, 30 * 86_400);
        let token = format!(
            "{{\"app\": \"chat\", \"token\": \"t/1\", \"until_unix_s\": {}}}",
            issued + 100
        );
        assert_eq!(
            ask(send("POST", PATH, kind, &token)).await.0,
            StatusCode::CREATED
        );
        let (_, list) = ask(get(PATH)).await;
        assert_eq!(list["revocations"].as_array().unwrap().len(), 2);
        let delete = "/v1/revocations?app=chat&token=t%2F1";
        let (status, done) = ask(send("DELETE", delete, "x", "")).await;
        assert_eq!(status, StatusCode::OK);
        assert!(done["done"].as_str().unwrap().contains("t/1"));

        let bad = StatusCode::BAD_REQUEST;
        for (request, status, word) in [
            (send("DELETE", delete, "x", ""), StatusCode::CONFLICT, "t/1"),
            (
                send("DELETE", "/v1/revocations?app=chat", "x", ""),
                bad,
                "`user`",
            ),
            (
                send("DELETE", "/v1/revocations?user=eve", "x", ""),
                bad,
                "`app`",
            ),
            (
                send("POST", PATH, kind, "{\"app\": \"chat\"}"),
                bad,
                "`token`",
            ),
            (
                send(
                    "POST",
                    PATH,
                    kind,
                    "{\"app\": \"a\", \"token\": \"t\", \"user\": \"u\"}",
                ),
                bad,
                "either",
            ),
            (send("POST", PATH, kind, "{\"user\": \"eve\"}"), bad, "app"),
            (
                send(
                    "POST",
                    PATH,
                    kind,
                    "{\"app\": \"a\", \"user\": \"u\", \"until_unix_s\": 5}",
                ),
                bad,
                "until_unix_s",
            ),
            (
                send(
                    "POST",
                    PATH,
                    kind,
                    "{\"app\": \"a\", \"user\": \"u\", \"until_unix_s\": -5}",
                ),
                bad,
                "-5",
            ),
            (send("POST", PATH, kind, "{\"users\": []}"), bad, "users"),
            (
                send("POST", PATH, "text/plain", user),
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "application/json",
            ),
            (
                send("PUT", PATH, kind, user),
                StatusCode::METHOD_NOT_ALLOWED,
                "DELETE",
            ),
        ] {
            let asked = format!("{} {}", request.method(), request.uri());
            let (found, body) = ask(request).await;
            let error = body["error"].as_str().unwrap();
            assert!(error.contains(word), "{asked}: {error}");
            assert_eq!(found, status, "{asked}: {error}");
        }
        let (_, list) = ask(get(PATH)).await;
        assert_eq!(list["revocations"].as_array().unwrap().len(), 1);
    });
    for request in [
        get(PATH),
        send("POST", PATH, kind, "{}"),
        send("DELETE", "/v1/revocations?app=a&user=b", "x", ""),
    ] {
        assert_eq!(closed(request).0, StatusCode::FORBIDDEN);
    }
}

#[test]
fn of_policy_file_and_api_the_last_to_change_wins_and_a_bad_file_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policy.toml");
    let price = |per_gb: f64| format!("[[price]]\nuplink = 1\nper_gb = {per_gb}\n");
    run_virtual(1, |wan| async move {
        let hosts = world(&wan);
        let controller: Controller = controller(&hosts[1], &keys(&hosts[1]), AdminAccess::Open);
        let in_force = || {
            let (kept, _) = controller.policy();
            (kept.policy.price[0].per_gb, kept.source)
        };
        std::fs::write(&file, price(0.1)).unwrap();
        assert!(controller.load_policy_file(&file).unwrap());
        assert_eq!(in_force().0, 0.1);
        assert!(in_force().1.contains("policy.toml"));

        let put = send("PUT", "/v1/policy", "application/toml", &price(0.2));
        assert_eq!(answer(controller.api(), put).await.0, StatusCode::OK);
        assert!(
            !controller.load_policy_file(&file).unwrap(),
            "the file is as it was"
        );
        assert_eq!(in_force(), (0.2, "api".to_owned()));

        std::fs::write(&file, "[[price]]\nper_gb = \"much\"").unwrap();
        let error = controller.load_policy_file(&file).unwrap_err().to_string();
        assert!(error.contains("policy.toml:2"), "{error}");
        assert_eq!(in_force().0, 0.2);

        std::fs::write(&file, price(0.3)).unwrap();
        assert!(controller.load_policy_file(&file).unwrap());
        assert_eq!(in_force().0, 0.3);
        std::fs::remove_file(&file).unwrap();
        assert!(controller.load_policy_file(&file).is_err());
        assert_eq!(in_force().0, 0.3);
    });
}

#[test]
fn metrics_are_named_and_helped_as_promtool_wants() {
    let text = run_virtual(1, |wan| async move {
        let hosts = world(&wan);
        let controller = controller(&hosts[1], &keys(&hosts[1]), AdminAccess::Closed);
        let registry = tradewind_controller::metrics::registry(&controller, "1", "c").unwrap();
        let encoder = prometheus::TextEncoder::new();
        encoder.encode_to_string(&registry.gather()).unwrap()
    });
    let mut families = 0;
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        families += 1;
        let (name, kind) = line.split_once(' ').unwrap();
        assert!(name.starts_with("tradewind_controller_"), "{name}");
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
        assert!(text.contains(&format!("# HELP {name} ")), "{name}");
    }
    assert!(families > 20, "{text}");
    assert!(
        text.contains("tradewind_controller_relays{state=\"online\"} 0\n"),
        "{text}"
    );
}
