//! Copies of messages to groups: how many links each was sent over, as relays show it, and over how
//! many it had to be, by the tree of the plan that it was stamped with.
//!
//! What is counted is a packet: one segment of a message. Left out, on both sides, are packets that
//! their sender has sent again, that a relay deflected, that met a link that did not work, and those of
//! plans that no controller could tell the tree of.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tradewind_controller::Controller;
use tradewind_proto::{
    PlanId,
    lane::LaneFrame,
    packet::{Destination, Kind},
};
use tradewind_relay::Passage;

use super::{
    ground::Ground,
    groups::{MESSAGE, read_stamp},
    places::Place,
};

/// A packet that is under way for so long has met no fault that happens later.
const UNDER_WAY: Duration = Duration::from_secs(3);

/// All packets of messages to groups.
#[derive(Debug)]
pub(super) struct Copies {
    /// Relay names, by place.
    relays: Vec<String>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Places by relay index, as relays show themselves.
    places: BTreeMap<u16, usize>,
    /// Groups by sender instance: there is one of them per client and group.
    groups: HashMap<u64, usize>,
    /// By sender instance, lane and sequence.
    packets: HashMap<(u64, u32, u64), Packet>,
    trees: HashMap<(PlanId, usize), Arc<Tree>>,
}

/// By place: the place whose relay it gets packets from.
type Tree = BTreeMap<usize, usize>;

/// One packet.
#[derive(Debug, Clone)]
struct Packet {
    /// When its ingress edge saw it first, network time.
    at: Duration,
    origin: usize,
    /// `None` when there was no controller to ask.
    tree: Option<Arc<Tree>>,
    /// Places with members, as the ingress edge knew.
    known: BTreeSet<usize>,
    /// How often its ingress edge has seen it.
    entered: u32,
    copies: u64,
    deflected: bool,
}

/// Sums.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) sent: u64,
    pub(super) minimum: u64,
    /// Packets left out.
    pub(super) excluded: u64,
    /// Packets counted.
    pub(super) packets: u64,
}

impl Copies {
    pub(super) fn new(places: &[Place]) -> Self {
        Self {
            relays: places.iter().map(|place| place.relay.clone()).collect(),
            inner: Mutex::default(),
        }
    }

    /// A packet passes the relay at `place` at network time `now`.
    pub(super) fn note(
        &self,
        place: usize,
        now: Duration,
        passage: &Passage<'_>,
        controller: impl FnOnce() -> Option<Controller>,
    ) {
        let header = passage.header;
        let mut inner = self.lock();
        inner.places.insert(passage.relay.0, place);
        let to_group = matches!(header.destination, Destination::Group(_));
        if header.kind != Kind::Message || !to_group {
            return;
        }
        let Ok(LaneFrame::Data(data)) = LaneFrame::decode(passage.payload.to_vec().into()) else {
            return;
        };
        let name = (data.sender, data.lane, data.sequence);
        let enters = header.passed_count() == 0 && header.sender.relay == passage.relay;
        if enters {
            if let Some((group, _)) = read_stamp(MESSAGE, &data.payload) {
                inner.groups.insert(data.sender, group);
            }
            let key = (header.plan, place);
            // While there is no controller to ask it is not known; the next packet asks again.
            if let Entry::Vacant(entry) = inner.trees.entry(key)
                && let Some(tree) = controller()
                    .and_then(|controller| controller.out_tree(header.plan, &self.relays[place]))
                && let Some(tree) = self.by_place(&tree)
            {
                entry.insert(Arc::new(tree));
            }
            let tree = inner.trees.get(&key).cloned();
            let known: BTreeSet<usize> = passage
                .relays
                .iter()
                .filter_map(|relay| inner.places.get(&relay.0).copied())
                .collect();
            let packet = inner.packets.entry(name).or_insert(Packet {
                at: now,
                origin: place,
                tree,
                known,
                entered: 0,
                copies: 0,
                deflected: false,
            });
            packet.entered += 1;
        } else if let Some(packet) = inner.packets.get_mut(&name) {
            packet.copies += 1;
            packet.deflected |= header.deflections > 0;
        }
    }

    /// The sums. `origin` is the network time at which measuring began; `members` says at which places
    /// a group has members, where that is known better than by its ingress edges.
    pub(super) fn count(
        &self,
        origin: Duration,
        ground: &Ground,
        members: impl Fn(usize) -> Option<BTreeSet<usize>>,
    ) -> Counts {
        let mut counts = Counts::default();
        let inner = self.lock();
        for (&(sender, ..), packet) in &inner.packets {
            let at = packet.at.saturating_sub(origin);
            let group = inner.groups.get(&sender).copied();
            let wanted = group
                .and_then(&members)
                .unwrap_or_else(|| packet.known.clone());
            let links = packet
                .tree
                .as_ref()
                .and_then(|tree| links(tree, packet.origin, &wanted));
            let Some(links) = links.filter(|links| {
                packet.entered == 1
                    && !packet.deflected
                    && ground.throughout(at, at + UNDER_WAY, |now| {
                        links.iter().all(|&(to, from)| now.is_usable(from, to))
                    })
            }) else {
                counts.excluded += 1;
                continue;
            };
            counts.packets += 1;
            counts.sent += packet.copies;
            counts.minimum += links.len() as u64;
        }
        counts
    }

    fn by_place(&self, tree: &[(String, String)]) -> Option<Tree> {
        let place = |name: &String| self.relays.iter().position(|relay| relay == name);
        tree.iter()
            .map(|(to, from)| Some((place(to)?, place(from)?)))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The links of a tree from `origin` to all of `wanted`: (to, from). `None` when one cannot be
/// reached.
fn links(tree: &Tree, origin: usize, wanted: &BTreeSet<usize>) -> Option<BTreeSet<(usize, usize)>> {
    let mut links = BTreeSet::new();
    for &place in wanted {
        let mut to = place;
        while to != origin {
            let from = *tree.get(&to)?;
            if !links.insert((to, from)) {
                // The rest is in it already.
                break;
            }
            to = from;
        }
    }
    Some(links)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_minimum_is_every_link_to_a_relay_with_members_once() {
        // 0 to 1 and 2, 1 to 3 and 4.
        let tree: Tree = [(1, 0), (2, 0), (3, 1), (4, 1)].into();
        let count = |wanted: &[usize]| {
            links(&tree, 0, &wanted.iter().copied().collect()).map(|links| links.len())
        };
        assert_eq!(count(&[]), Some(0));
        assert_eq!(count(&[0, 2]), Some(1));
        assert_eq!(count(&[3]), Some(2));
        assert_eq!(count(&[3, 4, 1]), Some(3));
        assert_eq!(count(&[3, 7]), None);
    }
}
