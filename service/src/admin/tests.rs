use std::sync::atomic::{AtomicBool, Ordering};

use axum::{
    body::{Body, to_bytes},
    http::Request,
};
use prometheus::IntCounter;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tower::ServiceExt as _;

use super::*;

async fn fetch(router: &Router, path: &str) -> (u16, String, String) {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let kind = response
        .headers()
        .get(header::CONTENT_TYPE)
        .map(|kind| kind.to_str().unwrap().to_owned())
        .unwrap_or_default();
    let status = response.status().as_u16();
    let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, kind, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn the_admin_listener_tells_life_readiness_metrics_and_configuration() {
    let registry = Registry::new();
    let counter = IntCounter::new("tradewind_relay_packets_total", "Packets").unwrap();
    registry.register(Box::new(counter.clone())).unwrap();
    counter.inc_by(7);
    let ready = Arc::new(AtomicBool::new(false));
    let is_ready = ready.clone();
    let router = Admin::new(registry)
        .ready(move || match is_ready.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err("no plan yet".to_owned()),
        })
        .config(|| serde_json::json!({"listen": "a:1"}))
        .merge(Router::new().route("/debug/plan", get(async || "plan 7")))
        .into_router();

    assert_eq!(fetch(&router, "/livez").await.0, 200);
    let (status, _, body) = fetch(&router, "/readyz").await;
    assert_eq!((status, body.as_str()), (503, "no plan yet\n"));
    ready.store(true, Ordering::Relaxed);
    assert_eq!(fetch(&router, "/readyz").await.0, 200);
    let (status, kind, body) = fetch(&router, "/metrics").await;
    assert_eq!((status, kind.as_str()), (200, "text/plain; version=0.0.4"));
    assert!(
        body.contains("\ntradewind_relay_packets_total 7\n"),
        "{body}"
    );
    let (_, kind, body) = fetch(&router, "/config").await;
    assert_eq!(
        (kind.as_str(), body.as_str()),
        ("application/json", r#"{"listen":"a:1"}"#)
    );
    assert_eq!(fetch(&router, "/debug/plan").await.2, "plan 7");
    assert_eq!(fetch(&router, "/nothing").await.0, 404);
}

#[tokio::test]
async fn a_busy_port_is_named_together_with_the_flag_that_chooses_another() {
    let first = listen("127.0.0.1:0".parse().unwrap(), "--admin")
        .await
        .unwrap();
    let address = first.local_addr().unwrap();
    let error = listen(address, "--admin").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot listen on {address}: address already in use; choose another with --admin")
    );
}

#[tokio::test]
async fn the_listener_ends_at_once_when_told_and_nothing_is_open() {
    let listener = listen("127.0.0.1:0".parse().unwrap(), "--admin")
        .await
        .unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let ask = async move {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        stop.send(()).unwrap();
        answer
    };
    let router = Admin::new(Registry::new()).into_router();
    let serving = serve(listener, router, async {
        let _ = stopped.await;
    });
    let (answer, served) = tokio::join!(ask, serving);
    served.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("ok\n"),
        "{answer}"
    );
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}
