//! Tokens that are withdrawn: real relays in virtual time, told by a controller.

mod support;

use std::time::Duration;

use quinn::ConnectionError;
use support::{TestClient, World};
use tradewind_proto::{
    CloseCode,
    control::{
        RefreshToken, Revocation, Revocations, client_message, controller_to_relay::Body,
        edge_message,
    },
    token::Claims,
};
use tradewind_wan::{Wan, run_virtual};

/// Two relays, 20 ms apart.
const PAIR: &[&[u64]] = &[&[0, 20], &[20, 0]];
const ISSUED: u64 = 1_000;

async fn world(wan: &Wan) -> World {
    let world = World::new(wan.clone(), PAIR).await;
    world.plan(1, &[&[0, 1], &[0, 1]], &[]).await;
    world
}

fn token(world: &World, user: &str, iat: u64, id: &str) -> String {
    world.token(user, |claims: &mut Claims| {
        claims.iat = iat;
        claims.jti = Some(id.to_owned());
    })
}

fn of_user(user: &str) -> Revocation {
    Revocation {
        app: "chat".to_owned(),
        user: user.to_owned(),
        not_after_unix_s: ISSUED,
        until_unix_s: u64::MAX / 2,
        ..Default::default()
    }
}

fn of_token(id: &str) -> Revocation {
    Revocation {
        token_id: id.to_owned(),
        user: String::new(),
        ..of_user("")
    }
}

/// Tells all relays, and lets it arrive.
async fn revoke(world: &World, revoked: &[Revocation]) {
    for relay in ["r0", "r1"] {
        let body = Body::Revocations(Revocations {
            revoked: revoked.to_vec(),
            ..Default::default()
        });
        world.controller.tell(relay, body);
    }
    world.wan.sleep(Duration::from_millis(100)).await;
}

/// The code that an edge has closed a session with, if it has.
fn closed(client: &TestClient) -> Option<CloseCode> {
    match client.connection.close_reason()? {
        ConnectionError::ApplicationClosed(close) => {
            CloseCode::from_code(close.error_code.into_inner())
        }
        other => panic!("{other}"),
    }
}

#[test]
fn sessions_of_a_revoked_user_end_at_every_edge_at_once_and_no_new_one_begins() {
    run_virtual(31, |wan| async move {
        let world = world(&wan).await;
        let old = token(&world, "eve", ISSUED, "t-1");
        let other = token(&world, "ben", ISSUED, "t-2");
        let eve = [
            world.client_with(0, &old).await.unwrap(),
            world.client_with(1, &old).await.unwrap(),
        ];
        let ben = world.client_with(0, &other).await.unwrap();
        revoke(&world, &[of_user("eve")]).await;
        for session in &eve {
            assert_eq!(closed(session), Some(CloseCode::Revoked));
        }
        assert_eq!(closed(&ben), None);
        let again = world.client_with(1, &old).await.err().unwrap();
        assert!(again.contains("revoked"), "{again}");
        // Made after that: the user is let in again.
        let new = token(&world, "eve", ISSUED + 1, "t-3");
        let eve = world.client_with(0, &new).await.unwrap();
        assert_eq!(closed(&eve), None);
        let ended = "tradewind_relay_revoked_sessions_total";
        assert_eq!(world.metric(0, ended, "") + world.metric(1, ended, ""), 2.0);
    });
}

#[test]
fn a_revoked_token_refreshes_no_session() {
    run_virtual(32, |wan| async move {
        let world = world(&wan).await;
        let good = token(&world, "eve", ISSUED, "t-1");
        let mut eve = world.client_with(0, &good).await.unwrap();
        revoke(&world, &[of_token("t-2")]).await;
        let token = token(&world, "eve", ISSUED, "t-2");
        let body = client_message::Body::RefreshToken(RefreshToken { token });
        let id = eve.ask(body).await;
        let Some(edge_message::Body::Refreshed(answer)) = eve.answer(id).await else {
            panic!("no answer");
        };
        assert!(answer.error.contains("revoked"), "{answer:?}");
        assert_eq!(closed(&eve), None, "its own token still holds");
        revoke(&world, &[of_token("t-1")]).await;
        assert_eq!(closed(&eve), Some(CloseCode::Revoked));
    });
}

#[test]
fn a_relay_restarted_without_its_controller_knows_who_is_revoked() {
    run_virtual(33, |wan| async move {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("plan.bin");
        let mut world = world(&wan).await;
        let restart = async |world: &mut World| {
            world.relays[0].stop().await;
            wan.sleep(Duration::from_secs(1)).await;
            let host = world.relay_hosts[0].clone();
            let with_file = |settings: &mut tradewind_relay::RelaySettings| {
                settings.state_file = Some(file.clone());
            };
            world.relays[0] = world.try_start_relay("r0", host, with_file).await.unwrap();
            wan.sleep(Duration::from_secs(5)).await;
        };
        restart(&mut world).await;
        world.controller.plan(2, &[&[0, 1], &[0, 1]], &[]);
        revoke(&world, &[of_user("eve")]).await;
        world.controller.kill();
        restart(&mut world).await;
        let old = token(&world, "eve", ISSUED, "t-1");
        let refused = world.client_with(0, &old).await.err().unwrap();
        assert!(refused.contains("revoked"), "{refused}");
        let other = token(&world, "ben", ISSUED, "t-2");
        assert!(world.client_with(0, &other).await.is_ok());
    });
}
