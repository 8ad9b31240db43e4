//! What applications are told of users who are offline: by real relays, and to a real HTTP server.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use ring::hmac;
use support::{TestClient, World};
use tokio::sync::mpsc;
use tradewind_proto::{
    Class,
    control::{
        Bye, LookupUser, client_message, edge_message, lookup_result::Status, lookup_user::Purpose,
    },
};
use tradewind_relay::{WebhookSecret, WebhookSettings};
use tradewind_wan::{run_real, run_virtual};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const EVENTS: &str = "tradewind_relay_webhook_events_total";

fn webhook(app: &str, url: &str) -> WebhookSettings {
    let secret = WebhookSecret::parse(app, SECRET).unwrap();
    WebhookSettings::new(app.to_owned(), url.to_owned(), secret)
}

async fn look_up(client: &mut TestClient, user: &str, purpose: Purpose) -> Status {
    let lookup = LookupUser {
        user: user.to_owned(),
        purpose: purpose as i32,
    };
    let id = client.ask(client_message::Body::LookupUser(lookup)).await;
    match client.answer(id).await {
        Some(edge_message::Body::LookupResult(result)) => result.status(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_something_that_waits_for_somebody_who_is_certainly_offline_makes_an_event() {
    run_virtual(1, |wan| async move {
        let change = |settings: &mut tradewind_relay::RelaySettings, _: &tradewind_wan::WanHost| {
            settings.webhooks = vec![webhook("chat", "http://127.0.0.1:9/")];
        };
        let world = World::with_settings(wan.clone(), &[&[0, 10], &[10, 0]], change).await;
        let to_both: &[u32] = &[0, 1];
        world.plan(1, &[to_both; 2], &[]).await;
        let mut alice = world.client(0, "alice").await;
        let events = || world.metric(0, EVENTS, "");
        // Homes that are still being told do not say so.
        while look_up(&mut alice, "bob", Purpose::Message).await == Status::Retry {
            assert_eq!(events(), 0.0);
            wan.sleep(Duration::from_millis(200)).await;
        }
        assert_eq!(events(), 1.0);
        assert_eq!(
            look_up(&mut alice, "bob", Purpose::Look).await,
            Status::Offline
        );
        assert_eq!(events(), 1.0);
        // An SDK of an earlier version does not say what waits.
        assert_eq!(
            look_up(&mut alice, "bob", Purpose::Unspecified).await,
            Status::Offline
        );
        assert_eq!(events(), 2.0);
        let mut bob = world.client(1, "bob").await;
        wan.sleep(Duration::from_millis(500)).await;
        assert_eq!(
            look_up(&mut alice, "bob", Purpose::Audio).await,
            Status::Found
        );
        bob.ask(client_message::Body::Bye(Bye {})).await;
        bob.connection.closed().await;
        wan.sleep(Duration::from_millis(2_100)).await;
        assert_eq!(
            look_up(&mut alice, "bob", Purpose::Audio).await,
            Status::Offline
        );
        assert_eq!(events(), 3.0);
        // What the token does not allow to be sent does not wake anybody.
        let token = world.token("eve", |claims| claims.classes = Some(vec![Class::Message]));
        let mut eve = world.client_with(0, &token).await.unwrap();
        assert_eq!(
            look_up(&mut eve, "bob", Purpose::Audio).await,
            Status::Offline
        );
        let token = world.token("eve", |claims| claims.app = "other".to_owned());
        let mut eve = world.client_with(0, &token).await.unwrap();
        assert_eq!(
            look_up(&mut eve, "bob", Purpose::Audio).await,
            Status::Offline
        );
        assert_eq!((events(), world.metric(1, EVENTS, "")), (3.0, 0.0));
    });
}

/// What the application's server was sent.
type Got = (HeaderMap, String);

/// A server that answers the first request with 503 and others with 204.
async fn server() -> (String, mpsc::UnboundedReceiver<Got>) {
    type Shared = Arc<(AtomicU32, mpsc::UnboundedSender<Got>)>;
    async fn take(State(shared): State<Shared>, headers: HeaderMap, body: String) -> StatusCode {
        let first = shared.0.fetch_add(1, Ordering::Relaxed) == 0;
        shared.1.send((headers, body)).expect("the test goes on");
        if first {
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            StatusCode::NO_CONTENT
        }
    }
    let (sender, got) = mpsc::unbounded_channel();
    let shared: Shared = Arc::new((AtomicU32::new(0), sender));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let router = Router::new().route("/hook", post(take)).with_state(shared);
    tokio::runtime::Handle::current().spawn(async move {
        axum::serve(listener, router).await.unwrap();
    });
    (url, got)
}

static URL: OnceLock<String> = OnceLock::new();

#[test]
fn the_application_is_called_with_a_signature_and_again_when_it_fails() {
    run_real(2, |wan| async move {
        let (url, mut got) = server().await;
        URL.set(url).unwrap();
        let change = |settings: &mut tradewind_relay::RelaySettings, _: &tradewind_wan::WanHost| {
            settings.webhooks = vec![webhook("*", URL.get().unwrap())];
        };
        // Two, as their link is up only once both have registered.
        let world = World::with_settings(wan.clone(), &[&[0, 1], &[1, 0]], change).await;
        let to_both: &[u32] = &[0, 1];
        world.plan(1, &[to_both; 2], &[]).await;
        let mut alice = world.client(0, "alice").await;
        while look_up(&mut alice, "bob", Purpose::Message).await == Status::Retry {
            wan.sleep(Duration::from_millis(100)).await;
        }
        for _ in 0..2 {
            look_up(&mut alice, "bob", Purpose::Audio).await;
        }
        let (first, body) = got.recv().await.unwrap();
        let (again, same_body) = got.recv().await.unwrap();
        assert_eq!(body, same_body);
        let header = |headers: &HeaderMap, name: &str| headers[name].to_str().unwrap().to_owned();
        assert_eq!(header(&first, "webhook-id"), header(&again, "webhook-id"));
        for headers in [&first, &again] {
            let (id, at) = (
                header(headers, "webhook-id"),
                header(headers, "webhook-timestamp"),
            );
            let key = BASE64_STANDARD.decode(&SECRET["whsec_".len()..]).unwrap();
            let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
            let signature = header(headers, "webhook-signature");
            let signature = BASE64_STANDARD
                .decode(signature.strip_prefix("v1,").unwrap())
                .unwrap();
            let signed = format!("{id}.{at}.{body}");
            hmac::verify(&key, signed.as_bytes(), &signature).unwrap();
        }
        let told: serde_json::Value = serde_json::from_str(&body).unwrap();
        let wanted = [
            ("event", "offline"),
            ("app", "chat"),
            ("user", "bob"),
            ("from", "alice"),
            ("class", "audio"),
            ("relay", "r0"),
        ];
        for (key, value) in wanted {
            assert_eq!(told[key], value, "{told}");
        }
        assert_eq!(
            (&told["count"], &told["id"]),
            (&3.into(), &header(&first, "webhook-id").into())
        );
        for at in ["first_at", "last_at"] {
            let at = told[at].as_str().unwrap();
            assert!(at.starts_with("20") && at.ends_with('Z'), "{at}");
        }
        let calls = |result| world.metric(0, "tradewind_relay_webhook_calls_total", result);
        while calls("ok") < 1.0 {
            wan.sleep(Duration::from_millis(20)).await;
        }
        assert_eq!((calls("ok"), calls("failed")), (1.0, 1.0));
    });
}
