//! The whole controller over an emulated network in virtual time: enrolment, registration, plans.

#![allow(clippy::unwrap_used)] // helpers of tests are tests

mod support;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use support::{Heard, PLACES, RTT_MS, controller, dial, enrol, keys, relay, world};
use tradewind_controller::AdminAccess;
use tradewind_host::Host;
use tradewind_proto::{ALPN_CONTROL, CloseCode, PlanId};
use tradewind_wan::run_virtual;

/// Three relays enrol, register, and get plans. Gives when the first was in force everywhere.
fn first_plan(seed: u64) -> (Duration, u64) {
    run_virtual(seed, |wan| async move {
        let hosts = world(&wan);
        let keys = keys(&hosts[0]);
        // The controller is at Hong Kong.
        let controller = controller(&hosts[1], &keys, AdminAccess::Closed);
        let address = controller.listen_address();
        let mut heard = Vec::new();
        for (place, host) in hosts.iter().enumerate() {
            let token = keys.token.to_string();
            let identity = enrol(host, address, &keys, &token, PLACES[place])
                .await
                .unwrap();
            heard.push(Arc::new(Mutex::new(Heard::default())));
            let spawner: Arc<dyn Host> = host.clone();
            spawner.spawn(relay(
                host.clone(),
                address,
                keys.ca.roots(),
                Arc::new(identity),
                place,
                PLACES[place].to_owned(),
                heard[place].clone(),
            ));
        }
        let mut plan = controller.watch_plan();
        plan.wait_for(Option::is_some).await.unwrap();
        let taken = wan.network_time();
        wan.sleep(Duration::from_secs(1)).await;

        let first = PlanId {
            epoch: 1,
            number: 1,
        };
        let active = Some(first);
        assert_eq!(controller.active_plan(), active);
        assert_eq!(controller.plans_activated(), 1);
        for heard in &heard {
            let heard = heard.lock().unwrap();
            assert_eq!(heard.active, active);
            assert!(heard.parts.contains_key(&first));
        }
        let path = controller.path("Perth", "Vladivostok").unwrap();
        assert_eq!(path.path, ["Perth", "Hong Kong", "Vladivostok"]);
        let expected_ms = (RTT_MS[0][2] - RTT_MS[0][1] - RTT_MS[1][2]) as f64 / 2.0;
        let saved_ms = path.direct_delay_ms.unwrap() - path.delay_ms.unwrap();
        assert!((saved_ms - expected_ms).abs() < 0.01, "{path:?}");

        // Away from the controller, relays stay as they are; their links are up still.
        controller.shutdown().await;
        assert_eq!(heard[0].lock().unwrap().active, active);
        (taken, wan.trace_digest())
    })
}

#[test]
fn three_relays_enrol_and_follow_a_plan_within_seconds() {
    let (taken, _) = first_plan(1);
    assert!(taken < Duration::from_secs(10), "{taken:?}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    assert_eq!(first_plan(7), first_plan(7));
}

#[test]
fn nobody_registers_under_a_name_that_is_not_in_its_certificate() {
    run_virtual(3, |wan| async move {
        let hosts = world(&wan);
        let keys = keys(&hosts[0]);
        let controller = controller(&hosts[1], &keys, AdminAccess::Closed);
        let address = controller.listen_address();
        let token = keys.token.to_string();
        let identity = enrol(&hosts[0], address, &keys, &token, "Perth")
            .await
            .unwrap();
        let heard = Arc::new(Mutex::new(Heard::default()));
        let spawner: Arc<dyn Host> = hosts[0].clone();
        spawner.spawn(relay(
            hosts[0].clone(),
            address,
            keys.ca.roots(),
            Arc::new(identity),
            0,
            "Vladivostok".to_owned(),
            heard.clone(),
        ));
        wan.sleep(Duration::from_secs(2)).await;
        let refused = heard.lock().unwrap().refused.clone().unwrap();
        assert!(refused.contains("Vladivostok"), "{refused}");
        assert_eq!(controller.relays(), []);
    });
}

#[test]
fn without_a_certificate_or_a_token_there_is_no_way_in() {
    run_virtual(4, |wan| async move {
        let hosts = world(&wan);
        let keys = keys(&hosts[0]);
        let controller = controller(&hosts[1], &keys, AdminAccess::Closed);
        let address: SocketAddr = controller.listen_address();
        let wrong = format!("twe1-{}", "0".repeat(64));
        let error = enrol(&hosts[0], address, &keys, &wrong, "Perth")
            .await
            .err()
            .unwrap();
        assert!(error.contains("not known"), "{error}");

        let roots = keys.ca.roots();
        let (_endpoint, connection) = dial(&hosts[0], address, &roots, None, ALPN_CONTROL)
            .await
            .unwrap();
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        let register = tradewind_proto::control::Register {
            name: "Perth".into(),
            ..Default::default()
        };
        support::say(
            &mut send,
            tradewind_proto::control::relay_to_controller::Body::Register(register),
        )
        .await;
        let quinn::ConnectionError::ApplicationClosed(close) = connection.closed().await else {
            panic!("closed by the controller");
        };
        assert_eq!(close.error_code.into_inner(), CloseCode::WrongPeer as u64);
        assert!(controller.relays().is_empty());
    });
}
