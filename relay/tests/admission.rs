//! More clients than a relay takes at once: real relays in virtual time.

mod support;

use std::time::Duration;

use support::{World, header};
use tokio::sync::mpsc;
use tradewind_host::Host;
use tradewind_proto::{Class, packet::Kind};
use tradewind_relay::RelaySettings;
use tradewind_wan::{HostClock, WanHost, run_virtual};

const PAIR: &[&[u64]] = &[&[0, 20], &[20, 0]];
const PER_SECOND: u32 = 10;

fn narrow(settings: &mut RelaySettings, _: &WanHost) {
    settings.handshakes_per_s = PER_SECOND;
}

#[test]
fn a_crowd_is_admitted_at_the_configured_rate_and_harms_nobody_who_is_there() {
    const CROWD: usize = 100;
    run_virtual(51, |wan| async move {
        let world = World::with_settings(wan.clone(), PAIR, narrow).await;
        world.plan(1, &[&[0, 1], &[0, 1]], &[]).await;
        let mut ann = world.client(0, "ann").await;
        let ben = world.client(0, "ben").await;
        let handle = ann.handle("ben").await;
        // A second's worth is saved up again.
        wan.sleep(Duration::from_secs(1)).await;
        let world = std::sync::Arc::new(world);
        let (tell, mut told) = mpsc::unbounded_channel();
        for n in 0..CROWD {
            let (world, tell) = (world.clone(), tell.clone());
            let host = wan.add_host(world.places[0], HostClock::EXACT);
            let token = world.token(&format!("user-{n}"), |_| ());
            let spawner: std::sync::Arc<dyn Host> = host.clone();
            spawner.spawn(async move {
                let result = world.client_on(host, 0, &token).await;
                let _ = tell.send(result);
            });
        }
        drop(tell);
        // Packets pass meanwhile.
        for n in 0..20 {
            ann.send(header(Kind::Media, Class::Audio, handle, n), b"on time");
            wan.sleep(Duration::from_millis(5)).await;
        }
        let (mut admitted, mut refused) = (Vec::new(), 0);
        for _ in 0..CROWD {
            match told.recv().await.unwrap() {
                Ok(client) => admitted.push(client),
                Err(reason) => {
                    assert!(reason.contains("refused"), "{reason}");
                    refused += 1;
                }
            }
        }
        assert_eq!(admitted.len(), PER_SECOND as usize);
        assert_eq!(refused, CROWD - admitted.len());
        let counted = world.metric(0, "tradewind_relay_refused_handshakes_total", "");
        assert_eq!(counted, refused as f64);
        for n in 0..20 {
            assert_eq!(ben.receive().await.unwrap().0.sequence, n);
        }
        // Those who come again later find room.
        wan.sleep(Duration::from_secs(1)).await;
        assert!(
            world
                .client_with(0, &world.token("late", |_| ()))
                .await
                .is_ok()
        );
    });
}
