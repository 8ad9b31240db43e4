//! Before something that goes well moves to a way which should be shorter, that way is proved: an echo
//! goes there and back. So nothing moves to an edge that is dead without anybody having noticed, and the
//! peer's edge knows who this client is there before the first packet comes.

use std::time::{Duration, Instant};

use tradewind_proto::{
    Class,
    packet::{AccessHeader, Kind},
};

use super::{Core, DeviceKey, Timer, WayKey, random};
use crate::shared::Shared;

/// How long an answer is waited for before the echo is sent again; three times the round trip at least.
const PATIENCE: Duration = Duration::from_millis(400);
/// How often that is attempted.
const ATTEMPTS: u32 = 3;
/// Ways that are proved at a time; beyond it conversations stay where they are.
const MAX_PROOFS: usize = 1_024;

/// A way that is to be proved.
pub(super) struct Proof {
    key: DeviceKey,
    way: WayKey,
    nonce: [u8; 8],
    attempts: u32,
}

impl Core {
    /// Proves a way to a device, unless that is being done.
    pub(super) fn prove_way(&mut self, key: &DeviceKey, way: WayKey, now: Instant) {
        let same = |proof: &Proof| proof.key == *key && proof.way == way;
        if self.proofs.values().any(same) {
            return;
        }
        // Another way than that is the best one by now.
        self.proofs.retain(|_, proof| proof.key != *key);
        if self.proofs.len() >= MAX_PROOFS {
            return;
        }
        let flow = self.new_flow();
        let proof = Proof {
            key: key.clone(),
            way,
            nonce: random(&*self.host).to_be_bytes(),
            attempts: 0,
        };
        self.proofs.insert(flow, proof);
        self.prove_again(flow, now);
    }

    /// Sends the echo of a proof (again), or ends it: nothing is heard over that way.
    pub(super) fn prove_again(&mut self, flow: u32, now: Instant) {
        let Some(proof) = self.proofs.get_mut(&flow) else {
            return;
        };
        proof.attempts += 1;
        let (key, way, nonce) = (proof.key.clone(), proof.way, proof.nonce);
        let live = self.attachments.get(&way.session);
        let live = live.map(|attachment| attachment.live.clone());
        let (Some(live), true) = (live, proof.attempts <= ATTEMPTS) else {
            self.proofs.remove(&flow);
            if let Some(device) = self.device(&key) {
                device.ways.distrust(way, now);
                self.choose_ways(&key.user, now);
            }
            return;
        };
        let class = self.peers.get(&key.user).map(|peer| peer.class);
        let header = AccessHeader {
            kind: Kind::EchoRequest,
            class: class.unwrap_or(Class::Message),
            trace: false,
            path_change: false,
            group: false,
            layer: 0,
            handle: way.handle,
            flow,
            sequence: 0,
            age_us: 0,
        };
        // One that is not sent is tried again like one that got lost.
        let _ = Shared::send_datagram(&live.connection, &header, &[&nonce]);
        self.note_use(way.session, now);
        let device = self.device(&key);
        let known = device.and_then(|device| device.ways.cost_of(way));
        let leg = live.connection.rtt();
        let patience = PATIENCE.max(3 * (leg + 2 * known.unwrap_or_default()));
        self.set_timer(Timer::Proof(flow), None, Some(now + patience));
    }

    /// An echo has come back. Whether it was that of a proof.
    pub(super) fn on_proof(&mut self, header: &AccessHeader, nonce: &[u8], now: Instant) -> bool {
        let Some(proof) = self.proofs.get(&header.flow) else {
            return false;
        };
        if nonce != proof.nonce {
            return false;
        }
        if let Some(Proof { key, way, .. }) = self.proofs.remove(&header.flow)
            && let Some(device) = self.device(&key)
        {
            device.ways.proved(way, now);
            self.choose_ways(&key.user, now);
        }
        true
    }
}
