//! Before something that goes well moves to a way which should be shorter, that way is tried: an echo
//! goes there and back. So nothing moves to an edge that is dead without anybody having noticed, and the
//! peer's edge knows who this client is there before the first packet comes.

use std::time::{Duration, Instant};

use tradewind_proto::{
    Class,
    packet::{AccessHeader, Kind},
};

use super::{Core, DeviceKey, Timer, WayKey, random};
use crate::shared::Shared;

/// How long an answer is waited for before the way is tried again; three times the round trip at least.
const PATIENCE: Duration = Duration::from_millis(400);
/// How often a way is tried.
const TRIES: u32 = 3;
/// Trials at a time; beyond it conversations stay where they are.
const MAX_TRIALS: usize = 1_024;

/// A way that is being tried.
pub(super) struct Trial {
    key: DeviceKey,
    way: WayKey,
    nonce: [u8; 8],
    tries: u32,
}

impl Core {
    /// Tries a way to a device, unless that is being done.
    pub(super) fn try_way(&mut self, key: &DeviceKey, way: WayKey, now: Instant) {
        let same = |trial: &Trial| trial.key == *key && trial.way == way;
        if self.trials.values().any(same) {
            return;
        }
        // Another way than that is the best one by now.
        self.trials.retain(|_, trial| trial.key != *key);
        if self.trials.len() >= MAX_TRIALS {
            return;
        }
        let flow = self.new_flow();
        let trial = Trial {
            key: key.clone(),
            way,
            nonce: random(&*self.host).to_be_bytes(),
            tries: 0,
        };
        self.trials.insert(flow, trial);
        self.try_again(flow, now);
    }

    /// Sends the echo of a trial (again), or ends it: nothing is heard over that way.
    pub(super) fn try_again(&mut self, flow: u32, now: Instant) {
        let Some(trial) = self.trials.get_mut(&flow) else {
            return;
        };
        trial.tries += 1;
        let (key, way, nonce) = (trial.key.clone(), trial.way, trial.nonce);
        let live = self.attachments.get(&way.session);
        let live = live.map(|attachment| attachment.live.clone());
        let (Some(live), true) = (live, trial.tries <= TRIES) else {
            self.trials.remove(&flow);
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
        self.set_timer(Timer::Trial(flow), None, Some(now + patience));
    }

    /// An echo has come back. Whether it was that of a trial.
    pub(super) fn on_trial_answered(
        &mut self,
        header: &AccessHeader,
        nonce: &[u8],
        now: Instant,
    ) -> bool {
        let Some(trial) = self.trials.get(&header.flow) else {
            return false;
        };
        if nonce != trial.nonce {
            return false;
        }
        if let Some(Trial { key, way, .. }) = self.trials.remove(&header.flow)
            && let Some(device) = self.device(&key)
        {
            device.ways.proved(way, now);
            self.choose_ways(&key.user, now);
        }
        true
    }
}
