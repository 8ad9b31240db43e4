//! Watching users over real relays, in virtual time.

mod support;

use std::time::Duration;

use support::{TestClient, World};
use tradewind_proto::control::{
    Bye, UnwatchUsers, UserPresence, WatchUsers, client_message,
    edge_message::Body,
    user_presence::Status::{self, Denied, Offline, Online, TooMany},
};
use tradewind_wan::{Wan, run_virtual};

/// Six relays, up to 120 ms from each other.
const FAR: &[&[u64]] = &[
    &[0, 20, 50, 80, 110, 120],
    &[20, 0, 40, 70, 100, 110],
    &[50, 40, 0, 30, 60, 70],
    &[80, 70, 30, 0, 40, 50],
    &[110, 100, 60, 40, 0, 10],
    &[120, 110, 70, 50, 10, 0],
];
const TO_ALL: &[u32] = &[0, 1, 2, 3, 4, 5];
/// What a change may take until it is told.
const IN_TIME: Duration = Duration::from_secs(2);
/// Nothing more comes if nothing has come for so long.
const QUIET: Duration = Duration::from_secs(4);
/// The same, longer than any lease.
const LONG: Duration = Duration::from_secs(15);

async fn world(wan: &Wan) -> World {
    let world = World::new(wan.clone(), FAR).await;
    world.plan(1, &[TO_ALL; 6], &[]).await;
    world
}

async fn watch(client: &mut TestClient, users: &[&str]) {
    let users = users.iter().map(|user| (*user).to_owned()).collect();
    let watch = client_message::Body::WatchUsers(WatchUsers { users });
    client.ask(watch).await;
}

/// Everything that the client is told until nothing has been told for `quiet`: each with how long
/// after the call it came. Sorted by user.
async fn told(client: &mut TestClient, quiet: Duration) -> Vec<(String, Status, Duration)> {
    let host = client.host.clone();
    let begun = host.now();
    let mut told = Vec::new();
    while let Ok(news) = host.timeout(quiet, client.news()).await {
        if let Some(Body::PresenceNews(news)) = news.expect("the session stands").body {
            for UserPresence { user, status } in news.users {
                let status = Status::try_from(status).expect("it is one of this version");
                told.push((user, status, host.now() - begun));
            }
        }
    }
    told.sort_by(|a, b| a.0.cmp(&b.0));
    told
}

/// What was told, each within two seconds.
fn in_time(told: &[(String, Status, Duration)]) -> Vec<(&str, Status)> {
    let late = told.iter().find(|(_, _, after)| *after > IN_TIME);
    assert!(late.is_none(), "{late:?}");
    let news = told.iter().map(|(user, status, _)| (&**user, *status));
    news.collect()
}

async fn leave(mut client: TestClient) {
    client.ask(client_message::Body::Bye(Bye {})).await;
    client.connection.closed().await;
}

#[test]
fn who_comes_and_who_goes_is_told_and_who_moves_to_another_edge_is_not() {
    run_virtual(1, |wan| async move {
        let world = world(&wan).await;
        let mut alice = world.client(0, "alice").await;
        let eve = world.client(3, "eve").await;
        wan.sleep(QUIET).await;
        watch(&mut alice, &["bob", "eve"]).await;
        let news = told(&mut alice, QUIET).await;
        assert_eq!(in_time(&news), [("bob", Offline), ("eve", Online)]);
        let bob = world.client(5, "bob").await;
        let news = told(&mut alice, QUIET).await;
        assert_eq!(in_time(&news), [("bob", Online)]);
        // Bob is between two edges for a moment.
        leave(bob).await;
        wan.sleep(Duration::from_millis(300)).await;
        let bob = world.client(2, "bob").await;
        assert_eq!(told(&mut alice, LONG).await, []);
        leave(bob).await;
        let news = told(&mut alice, QUIET).await;
        assert_eq!(in_time(&news), [("bob", Offline)]);
        // Who does not watch any more is not told.
        let users = vec!["eve".to_owned()];
        let unwatch = client_message::Body::UnwatchUsers(UnwatchUsers { users });
        alice.ask(unwatch).await;
        wan.sleep(Duration::from_secs(1)).await;
        leave(eve).await;
        assert_eq!(told(&mut alice, QUIET).await, []);
    });
}

#[test]
fn the_users_of_an_edge_that_is_killed_are_offline_within_two_seconds_unless_they_stand_by_elsewhere()
 {
    run_virtual(2, |wan| async move {
        let world = world(&wan).await;
        let names: Vec<String> = (0..12).map(|n| format!("user-{n:02}")).collect();
        let users: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut sessions = Vec::new();
        for (n, user) in users.iter().enumerate() {
            sessions.push(world.client(1, user).await);
            if n >= 8 {
                sessions.push(world.client(4, user).await);
            }
        }
        let mut alice = world.client(0, "alice").await;
        watch(&mut alice, &users).await;
        let news = told(&mut alice, QUIET).await;
        assert!(in_time(&news).iter().all(|(_, status)| *status == Online));
        assert_eq!(news.len(), 12);
        world.relay_hosts[1].kill();
        let news = told(&mut alice, QUIET).await;
        let expected: Vec<_> = users[..8].iter().map(|user| (*user, Offline)).collect();
        assert_eq!(in_time(&news), expected);
        // They come back elsewhere.
        for user in &users[..8] {
            sessions.push(world.client(2, user).await);
        }
        let news = told(&mut alice, QUIET).await;
        let expected: Vec<_> = users[..8].iter().map(|user| (*user, Online)).collect();
        assert_eq!(news.len(), 8);
        let news: Vec<_> = news.iter().map(|(u, status, _)| (&**u, *status)).collect();
        assert_eq!(news, expected);
    });
}

#[test]
fn who_comes_back_at_once_from_an_edge_that_was_killed_was_never_offline() {
    run_virtual(3, |wan| async move {
        let world = world(&wan).await;
        let bob = world.client(4, "bob").await;
        let mut alice = world.client(0, "alice").await;
        watch(&mut alice, &["bob"]).await;
        let news = told(&mut alice, QUIET).await;
        assert_eq!(in_time(&news), [("bob", Online)]);
        world.relay_hosts[4].kill();
        wan.sleep(Duration::from_millis(400)).await;
        let back = world.client(5, "bob").await;
        assert_eq!(told(&mut alice, LONG).await, []);
        drop((bob, back));
    });
}

#[test]
fn homes_may_die_and_the_controller_be_away() {
    for killed in [[2, 3], [3, 4], [5, 2]] {
        run_virtual(4, |wan| async move {
            let world = world(&wan).await;
            let mut alice = world.client(0, "alice").await;
            let bob = world.client(1, "bob").await;
            watch(&mut alice, &["bob", "eve"]).await;
            let news = told(&mut alice, QUIET).await;
            assert_eq!(in_time(&news), [("bob", Online), ("eve", Offline)]);
            world.controller.kill();
            world.relay_hosts[killed[0]].kill();
            assert_eq!(told(&mut alice, LONG).await, []);
            leave(bob).await;
            let news = told(&mut alice, QUIET).await;
            assert_eq!(in_time(&news), [("bob", Offline)]);
            // A second one, at the very moment at which eve comes.
            world.relay_hosts[killed[1]].kill();
            let eve = world.client(1, "eve").await;
            let news = told(&mut alice, QUIET).await;
            assert_eq!(in_time(&news), [("eve", Online)]);
            drop(eve);
        });
    }
}

#[test]
fn a_plan_with_other_relays_moves_the_homes_and_nobody_flickers() {
    run_virtual(5, |wan| async move {
        let world = world(&wan).await;
        let mut alice = world.client(0, "alice").await;
        let bob = world.client(1, "bob").await;
        watch(&mut alice, &["bob", "eve"]).await;
        assert_eq!(told(&mut alice, QUIET).await.len(), 2);
        // An edge dies and is planned around while its user is watched.
        let eve = world.client(5, "eve").await;
        assert_eq!(in_time(&told(&mut alice, QUIET).await), [("eve", Online)]);
        world.relay_hosts[5].kill();
        wan.sleep(Duration::from_millis(700)).await;
        world.controller.forget("r5");
        world.controller.plan(2, &[&TO_ALL[..5]; 5], &[]);
        let news = told(&mut alice, QUIET).await;
        assert_eq!(in_time(&news), [("eve", Offline)]);
        leave(bob).await;
        let news = told(&mut alice, QUIET).await;
        assert_eq!(in_time(&news), [("bob", Offline)]);
        drop(eve);
    });
}

#[test]
fn the_token_and_the_limits_say_who_is_watched_and_other_apps_are_others() {
    run_virtual(6, |wan| async move {
        let world = world(&wan).await;
        let token = world.token("alice", |claims| {
            claims.watch = Some(vec!["bob".to_owned()]);
        });
        let mut alice = world.client_with(0, &token).await.unwrap();
        let elsewhere = world.token("bob", |claims| {
            claims.app = "other".to_owned();
        });
        let _bob = world.client_with(1, &elsewhere).await.unwrap();
        watch(&mut alice, &["bob", "eve", ""]).await;
        let news = told(&mut alice, QUIET).await;
        assert_eq!(
            in_time(&news),
            [("", Denied), ("bob", Offline), ("eve", Denied)]
        );
        let mut many = world.client(0, "many").await;
        let names: Vec<String> = (0..1_100).map(|n| format!("user-{n:04}")).collect();
        for some in names.chunks(100) {
            let some: Vec<&str> = some.iter().map(String::as_str).collect();
            watch(&mut many, &some).await;
        }
        let news = told(&mut many, QUIET).await;
        let count = |wanted| {
            news.iter()
                .filter(|(_, status, _)| *status == wanted)
                .count()
        };
        assert_eq!((count(Offline), count(TooMany)), (1_024, 76));
        // A session that has ended watches nobody.
        drop(many);
        wan.sleep(Duration::from_secs(1)).await;
    });
}
