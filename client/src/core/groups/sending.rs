//! Lanes to groups. The ingress edge acknowledges them, once all edges with members hold them.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use bytes::Bytes;
use tradewind_proto::{
    Class,
    lane::{Ack, Enqueue, LaneFrame, MessageId, Outcome, Refuse, SendLane, Trouble},
};

use super::{Groups, Timer};
use crate::{
    Delivered, GroupError, SendError, SendOptions,
    core::{Outcomes, devices::send_error},
};

/// A lane to a group.
pub(super) struct SendEntry {
    pub(super) lane: SendLane,
    outcomes: BTreeMap<MessageId, (Outcomes, u64)>,
    resent_counted: u64,
    /// Whether it waits for its turn to send.
    pub(super) queued: bool,
    pub(super) timer: Option<Instant>,
}

impl Groups {
    /// Takes a message to send. `limit` is the longest that the token allows, bytes.
    pub(in crate::core) fn enqueue(
        &mut self,
        name: &str,
        payload: Bytes,
        options: SendOptions,
        limit: u64,
        outcome: Outcomes,
        now: Instant,
    ) {
        let bytes = payload.len() as u64;
        let refuse = |groups: &mut Self, outcome: Outcomes, error: SendError| {
            groups.out.counts.failed += 1;
            let _ = outcome.send(crate::Outcomes::failed(error));
        };
        if bytes > limit {
            return refuse(self, outcome, SendError::TooLarge { bytes, limit });
        }
        let config = self.send_config;
        let (name, group) = match self.group(name) {
            Ok(found) => found,
            Err(error) => {
                let error = match error {
                    GroupError::Closed => SendError::Closed,
                    GroupError::TooMany => SendError::QueueFull,
                    _ => SendError::Denied,
                };
                return refuse(self, outcome, error);
            }
        };
        let sender = group.sender;
        let entry = group
            .lanes
            .entry(options.lane)
            .or_insert_with(|| SendEntry {
                lane: SendLane::new(config, sender, options.lane),
                outcomes: BTreeMap::new(),
                resent_counted: 0,
                queued: false,
                timer: None,
            });
        let enqueue = Enqueue {
            payload,
            class: options.class,
            ttl: options.ttl,
        };
        match entry.lane.enqueue(enqueue, now) {
            Ok(id) => {
                entry.outcomes.insert(id, (outcome, bytes));
            }
            Err(error) => return refuse(self, outcome, send_error(error, bytes, limit)),
        }
        self.ask(&name, now);
        self.serve_send(&name, options.lane);
    }

    /// An ACK has come to a handle of ours. `false` when it is none of a group.
    pub(in crate::core) fn on_ack(&mut self, handle: u32, ack: &Ack, now: Instant) -> bool {
        self.with_lane_of(handle, ack.lane, |lane| lane.on_ack(ack, now))
    }

    /// A REFUSE has come to a handle of ours. `false` when it is none of a group.
    pub(in crate::core) fn on_refuse(
        &mut self,
        handle: u32,
        refuse: &Refuse,
        now: Instant,
    ) -> bool {
        self.with_lane_of(handle, refuse.lane, |lane| lane.on_refuse(refuse, now))
    }

    /// The edge did not take a packet. `false` when it was none to a group.
    pub(in crate::core) fn on_rejected(
        &mut self,
        handle: u32,
        lane: u32,
        sequence: u32,
        trouble: Trouble,
        now: Instant,
    ) -> bool {
        self.with_lane_of(handle, lane, |lane| {
            lane.on_rejected(sequence, trouble, now);
        })
    }

    /// The next frame of a lane whose turn it is, with the handle that it goes to.
    pub(in crate::core) fn next_frame(
        &mut self,
        name: &Arc<str>,
        lane: u32,
        now: Instant,
    ) -> Option<(u32, Class, LaneFrame)> {
        let group = self.by_name.get_mut(name)?;
        let entry = group.lanes.get_mut(&lane)?;
        entry.queued = false;
        let handle = group.handle?;
        let Some((frame, class)) = entry.lane.poll_transmit(now) else {
            let next = entry.lane.next_timeout();
            let before = std::mem::replace(&mut entry.timer, next);
            self.set_timer(Timer::Send(name.clone(), lane), before, next);
            return None;
        };
        // One segment each, in turn: the caller gives it another one.
        entry.queued = true;
        Some((handle, class, frame))
    }

    pub(super) fn send_timer(&mut self, name: &Arc<str>, lane: u32, now: Instant) {
        if let Some(entry) = self.send_entry(name, lane) {
            entry.timer = None;
            entry.lane.on_timeout(now);
            self.serve_send(name, lane);
        }
    }

    /// Does something to all lanes to a group.
    pub(super) fn each_lane(
        &mut self,
        name: &Arc<str>,
        now: Instant,
        work: impl Fn(&mut SendLane, Instant),
    ) {
        let lanes: Vec<u32> = self
            .by_name
            .get(name)
            .map_or_else(Vec::new, |group| group.lanes.keys().copied().collect());
        for lane in lanes {
            if let Some(entry) = self.send_entry(name, lane) {
                work(&mut entry.lane, now);
                self.serve_send(name, lane);
            }
        }
    }

    fn with_lane_of(&mut self, handle: u32, lane: u32, work: impl FnOnce(&mut SendLane)) -> bool {
        let Some(name) = self.by_handle.get(&handle).cloned() else {
            return false;
        };
        if let Some(entry) = self.send_entry(&name, lane) {
            work(&mut entry.lane);
            self.serve_send(&name, lane);
        }
        true
    }

    fn send_entry(&mut self, name: &str, lane: u32) -> Option<&mut SendEntry> {
        self.by_name.get_mut(name)?.lanes.get_mut(&lane)
    }

    /// After anything that happened to a lane of ours: outcomes, timer, and its turn to send.
    fn serve_send(&mut self, name: &Arc<str>, lane: u32) {
        let Some(group) = self.by_name.get_mut(name) else {
            return;
        };
        let can_send = group.handle.is_some();
        let Some(entry) = group.lanes.get_mut(&lane) else {
            return;
        };
        let counts = &mut self.out.counts;
        while let Some((id, outcome)) = entry.lane.poll_outcome() {
            let Some((told, bytes)) = entry.outcomes.remove(&id) else {
                continue;
            };
            let result = match outcome {
                Outcome::Delivered { after, age } => {
                    counts.delivered += 1;
                    Ok(Delivered { after, age })
                }
                failed => {
                    counts.failed += 1;
                    Err(send_error(failed, bytes, bytes))
                }
            };
            let _ = told.send(crate::Outcomes {
                whole: result,
                devices: Vec::new(),
            });
        }
        counts.resent += entry.lane.resent() - entry.resent_counted;
        entry.resent_counted = entry.lane.resent();
        let turn = can_send && !entry.queued && !entry.lane.is_idle();
        entry.queued |= turn;
        let next = entry.lane.next_timeout();
        let before = std::mem::replace(&mut entry.timer, next);
        if turn {
            self.out.turns.push_back((name.clone(), lane));
        }
        self.set_timer(Timer::Send(name.clone(), lane), before, next);
    }
}
