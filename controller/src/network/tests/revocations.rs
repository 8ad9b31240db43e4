//! Tokens that are withdrawn.

use tradewind_trust::Revoked;

use super::*;

/// What the clock on the wall shows at the start.
const START: u64 = 1_000_000;

fn of_user(user: &str) -> Revoke {
    Revoke {
        app: "chat".into(),
        what: Revoked::User(user.into()),
        issued_until: None,
        until: None,
        reason: String::new(),
    }
}

/// The users that the relay at a place knows to be revoked.
fn known(world: &World, place: usize) -> Vec<String> {
    let all = world.relays[place].revoked.iter();
    all.map(|one| one.what.name().to_owned()).collect()
}

#[test]
fn all_relays_are_told_at_once_and_those_that_come_later_when_they_come() {
    let mut world = World::running(triangle());
    world.disconnect(2);
    let view = world.network.revoke(world.now, of_user("eve")).unwrap();
    assert_eq!(view.issued_until_unix_s, Some(START + 5));
    assert_eq!(view.until_unix_s, START + 5 + 30 * 86_400);
    world.deliver();
    assert_eq!(
        (known(&world, 0), known(&world, 1), known(&world, 2)),
        (vec!["eve".to_owned()], vec!["eve".to_owned()], vec![])
    );
    world.connect(2);
    assert_eq!(known(&world, 2), ["eve"]);
    let what = Revoked::User("eve".into());
    world.network.lift_revocation("chat", &what).unwrap();
    world.deliver();
    assert_eq!(known(&world, 2), [""; 0]);
    let error = world.network.lift_revocation("chat", &what).unwrap_err();
    assert!(error.to_string().contains("user eve"), "{error}");
}

#[test]
fn revocations_outlive_the_controller_until_they_are_over() {
    let mut world = World::running(triangle());
    let short = Revoke {
        until: Some(START + 100),
        ..of_user("ann")
    };
    world.network.revoke(world.now, short).unwrap();
    world.network.revoke(world.now, of_user("eve")).unwrap();
    world.deliver();
    let kept = world.storage.load().unwrap();
    assert_eq!(kept.revocations.len(), 2);
    let mut fresh = World::new(triangle());
    fresh.network.restore(kept);
    fresh.connect(0);
    assert_eq!(known(&fresh, 0), ["ann", "eve"]);
    fresh.now = Duration::from_secs(200);
    fresh.connect(1);
    assert_eq!(known(&fresh, 1), ["eve"]);
    assert_eq!(fresh.network.revocations().len(), 1);
}

#[test]
fn a_long_list_goes_in_several_messages_that_fit() {
    let mut world = World::new(triangle());
    let user = |n: usize| format!("{n:0>256}");
    for n in 0..RevocationList::MAX {
        world.network.revoke(world.now, of_user(&user(n))).unwrap();
    }
    let error = world.network.revoke(world.now, of_user("one more"));
    assert!(matches!(error, Err(OperateError::Conflict(_))), "{error:?}");
    world.network.take_actions();
    let connection = ConnectionId(7_777);
    world.network.send_revocations(connection, world.now);
    let mut told = Vec::new();
    for action in world.network.take_actions() {
        let Action::Send { message, .. } = action else {
            continue;
        };
        let frame = tradewind_proto::frame_message(&message);
        assert!(frame.len() < tradewind_proto::MAX_CONTROL_FRAME);
        let Some(to_relay::Body::Revocations(part)) = message.body else {
            panic!("another message");
        };
        assert_eq!(part.whole, told.is_empty(), "only the first replaces");
        told.extend(part.revoked);
    }
    assert_eq!(told.len(), RevocationList::MAX);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut world = World::new(triangle());
    for (bad, word) in [
        (of_user(""), "user"),
        (
            Revoke {
                until: Some(START),
                ..of_user("eve")
            },
            "over",
        ),
        (
            Revoke {
                until: Some(START * 1_000),
                ..of_user("eve")
            },
            "seconds",
        ),
        (
            Revoke {
                issued_until: Some(START + 11),
                until: Some(START + 10),
                ..of_user("eve")
            },
            "after",
        ),
        (
            Revoke {
                issued_until: Some(START),
                what: Revoked::Token("t-1".into()),
                ..of_user("eve")
            },
            "for users",
        ),
        (
            Revoke {
                reason: "x".repeat(501),
                ..of_user("eve")
            },
            "reason",
        ),
    ] {
        let error = world.network.revoke(world.now, bad).unwrap_err();
        assert!(matches!(error, OperateError::Bad(_)), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
    assert!(world.network.take_actions().is_empty());
}
