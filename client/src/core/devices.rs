//! The devices of a peer: a message goes to each of them over lanes of its own, and has one outcome
//! for each and one as a whole.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tradewind_proto::{
    Class,
    lane::{Enqueue, MessageId, Outcome, SendLane},
};

use super::{Core, DeviceKey, LaneKey, Outcomes, SendEntry, Timer, Ways, random};
use crate::{Delivered, DeviceOutcome, SendError};

/// Stands for the device that a peer will have: for what is sent before the first lookup.
pub(super) const ANY: u64 = u64::MAX;
/// Devices of one user that are sent to, the newest ones.
pub(super) const MAX_DEVICES: usize = 16;

/// One device of a peer.
pub(super) struct Device {
    /// The sender instance of our lanes to it.
    pub(super) sender: u64,
    pub(super) lanes: BTreeMap<u32, SendEntry>,
    pub(super) ways: Ways,
    /// Since when the directory does not name it any more.
    pub(super) absent_since: Option<Instant>,
}

impl Device {
    pub(super) fn has_messages(&self) -> bool {
        self.lanes.values().any(|entry| entry.lane.pending() > 0)
    }
}

/// A send whose outcome is not known yet.
pub(super) struct SendState {
    /// Devices it went to, by SDK instance.
    targets: Vec<u64>,
    settled: Vec<DeviceOutcome>,
    all_devices: bool,
    began: Instant,
    /// How long it had waited when it was given to its present devices.
    waited: Duration,
    bytes: u64,
    outcome: Outcomes,
}

impl Core {
    /// Sends a message to devices of a peer; it is settled when it is for all of them.
    pub(super) fn send_to(
        &mut self,
        user: &Arc<str>,
        devices: &[u64],
        lane: u32,
        message: Enqueue,
        (all_devices, outcome): (bool, Outcomes),
        now: Instant,
    ) {
        let send = self.next_send;
        self.next_send += 1;
        let state = SendState {
            targets: devices.to_vec(),
            settled: Vec::new(),
            all_devices,
            began: now,
            waited: Duration::ZERO,
            bytes: message.payload.len() as u64,
            outcome,
        };
        self.sends.insert(send, state);
        for &instance in devices {
            let (user, message) = (user.clone(), message.clone());
            self.queue_for(&DeviceKey { user, instance }, lane, message, send, now);
        }
    }

    fn queue_for(&mut self, key: &DeviceKey, lane: u32, message: Enqueue, send: u64, now: Instant) {
        self.make_device(key);
        let config = self.send_config;
        let Some(device) = self.device(key) else {
            return self.settle(send, key.instance, Outcome::QueueFull);
        };
        let sender = device.sender;
        let entry = device.lanes.entry(lane).or_insert_with(|| SendEntry {
            lane: SendLane::new(config, sender, lane),
            sends: BTreeMap::new(),
            resent_counted: 0,
            queued: false,
            timer: None,
        });
        match entry.lane.enqueue(message, now) {
            Ok(id) => {
                entry.sends.insert(id, send);
                self.serve_send(key, lane);
            }
            Err(error) => self.settle(send, key.instance, error),
        }
    }

    /// One device's outcome of a send.
    pub(super) fn settle(&mut self, send: u64, instance: u64, outcome: Outcome) {
        let limit = self.welcome.max_message_bytes;
        let Some(state) = self.sends.get_mut(&send) else {
            return;
        };
        state.settled.push(DeviceOutcome {
            device: instance,
            outcome: match outcome {
                Outcome::Delivered { after, age } => Ok(Delivered {
                    after: state.waited + after,
                    age,
                }),
                failed => Err(send_error(failed, state.bytes, limit)),
            },
        });
        if state.settled.len() < state.targets.len() {
            return;
        }
        if let Some(state) = self.sends.remove(&send) {
            let outcomes = crate::Outcomes::new(state.settled);
            match outcomes.whole {
                Ok(_) => self.stats.messages_delivered += 1,
                Err(_) => self.stats.messages_failed += 1,
            }
            let _ = state.outcome.send(outcomes);
        }
    }

    /// Makes the device known, if it is not.
    pub(super) fn make_device(&mut self, key: &DeviceKey) {
        let sender = random(&*self.host);
        let Some(peer) = self.peers.get_mut(&key.user) else {
            return;
        };
        if let Entry::Vacant(entry) = peer.devices.entry(key.instance) {
            entry.insert(Device {
                sender,
                lanes: BTreeMap::new(),
                ways: Ways::default(),
                absent_since: None,
            });
            self.by_sender.insert(sender, key.clone());
        }
    }

    /// The directory names these devices of a peer, newest first. What waits for others goes to them.
    pub(super) fn take_devices(&mut self, user: &Arc<str>, present: &[u64], now: Instant) {
        let key = |instance| DeviceKey {
            user: user.clone(),
            instance,
        };
        for &instance in present {
            self.make_device(&key(instance));
        }
        let Some(peer) = self.peers.get_mut(user) else {
            return;
        };
        peer.newest = present.first().copied();
        peer.present = present.to_vec();
        let mut left = Vec::new();
        for (&instance, device) in &mut peer.devices {
            if present.contains(&instance) {
                device.absent_since = None;
                continue;
            }
            let since = *device.absent_since.get_or_insert(now);
            let certain = instance == ANY || now >= since + super::ABSENT_FOR;
            if certain || !device.has_messages() {
                left.push(instance);
            }
        }
        for instance in left {
            self.hand_over(&key(instance), present, now);
        }
    }

    /// A device is no more: its messages go to those that have not got them; those that others have
    /// are not delivered to it.
    fn hand_over(&mut self, from: &DeviceKey, present: &[u64], now: Instant) {
        let Some(peer) = self.peers.get_mut(&from.user) else {
            return;
        };
        let Some(mut device) = peer.devices.remove(&from.instance) else {
            return;
        };
        for (lane, entry) in &mut device.lanes {
            let waiting: Vec<(MessageId, Bytes, Class, Instant)> = entry
                .lane
                .unsettled()
                .map(|(id, payload, class, expires)| (id, payload.clone(), class, expires))
                .collect();
            for (id, payload, class, expires) in waiting {
                let Some(send) = entry.sends.remove(&id) else {
                    continue;
                };
                let Some(state) = self.sends.get_mut(&send) else {
                    continue;
                };
                let others = present.iter().filter(|i| !state.targets.contains(i));
                let to: Vec<u64> = match (state.targets.len(), state.all_devices) {
                    (1, true) => others.copied().collect(),
                    (1, false) => others.take(1).copied().collect(),
                    _ => Vec::new(),
                };
                if to.is_empty() {
                    self.settle(send, from.instance, Outcome::Offline);
                    continue;
                }
                state.targets.clone_from(&to);
                state.waited = now.saturating_duration_since(state.began);
                for instance in to {
                    let message = Enqueue {
                        payload: payload.clone(),
                        class,
                        ttl: expires.saturating_duration_since(now),
                    };
                    let user = from.user.clone();
                    self.queue_for(&DeviceKey { user, instance }, *lane, message, send, now);
                }
            }
        }
        self.forget_device(from, device);
    }

    /// What else names a device that is forgotten.
    pub(super) fn forget_device(&mut self, key: &DeviceKey, device: Device) {
        self.by_sender.remove(&device.sender);
        for (lane, entry) in device.lanes {
            if let Some(at) = entry.timer {
                let key = LaneKey::Send(key.clone(), lane);
                self.timers.remove(&(at, Timer::Lane(key)));
            }
        }
    }
}

pub(super) const fn send_error(outcome: Outcome, bytes: u64, limit: u64) -> SendError {
    match outcome {
        Outcome::Expired | Outcome::Delivered { .. } => SendError::Expired,
        Outcome::Offline => SendError::Offline,
        Outcome::Denied => SendError::Denied,
        Outcome::TooLarge => SendError::TooLarge {
            bytes,
            // Within the token's limit it was the receiver who said no.
            limit: if bytes > limit {
                limit
            } else {
                bytes.saturating_sub(1)
            },
        },
        Outcome::QueueFull => SendError::QueueFull,
        Outcome::Closed => SendError::Closed,
    }
}
