//! Homes and edges against each other: whatever is sent after a join has returned reaches the edge
//! that joined.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use proptest::prelude::*;
use tradewind_proto::{RelayIndex, packet::RelaySet};

use super::{Announced, GroupId, Home, HomeAction, LEASE, RelayCache};

const MS: Duration = Duration::from_millis(1);
/// Homes 0 to 2; edges with members 10 and 11; edges that send 12 and 13.
const HOMES: [RelayIndex; 3] = [RelayIndex(0), RelayIndex(1), RelayIndex(2)];
const NETWORK: [RelayIndex; 7] = [
    RelayIndex(0),
    RelayIndex(1),
    RelayIndex(2),
    RelayIndex(10),
    RelayIndex(11),
    RelayIndex(12),
    RelayIndex(13),
];

#[derive(Debug, Clone)]
enum Said {
    Announce {
        id: u64,
    },
    Withdraw {
        id: u64,
    },
    Lookup {
        id: u64,
    },
    Confirmed {
        id: u64,
    },
    Announced {
        id: u64,
    },
    Answer {
        id: u64,
        relays: RelaySet,
        version: u64,
    },
    Changed {
        id: u64,
        relays: RelaySet,
        version: u64,
    },
}

/// An edge: with members or not, and sending or not.
struct Edge {
    member: bool,
    announced: Announced,
    /// When each home was told, by id.
    told: BTreeMap<u64, Instant>,
    cache: RelayCache,
}

struct World {
    now: Instant,
    homes: BTreeMap<RelayIndex, Home>,
    edges: BTreeMap<RelayIndex, Edge>,
    /// By arrival.
    network: BTreeMap<(Instant, u64), (RelayIndex, RelayIndex, Said)>,
    counter: u64,
    /// Delays and losses, drawn.
    fates: Vec<u8>,
}

#[derive(Debug, Clone)]
enum Step {
    Join(u8),
    Leave(u8),
    Send(u8),
    /// A home cannot be reached, or can again.
    Cut(u8, bool),
    Wait(u16),
}

fn group() -> GroupId {
    GroupId {
        app: "chat".into(),
        group: "cats".into(),
    }
}

impl World {
    #[allow(clippy::disallowed_methods)] // any instant will do
    fn new(fates: Vec<u8>) -> Self {
        let now = Instant::now();
        let edge = |_| Edge {
            member: false,
            announced: Announced::default(),
            told: BTreeMap::new(),
            cache: RelayCache::new(HOMES.to_vec(), now),
        };
        Self {
            now,
            homes: HOMES.map(|home| (home, Home::new(1))).into(),
            edges: [10, 11, 12, 13].map(|n| (RelayIndex(n), edge(n))).into(),
            network: BTreeMap::new(),
            counter: 0,
            fates,
        }
    }

    /// Messages take 1 to 200 ms, overtake each other, and one in eight is lost.
    fn say(&mut self, from: RelayIndex, to: RelayIndex, cut: &[bool; 3], what: Said) {
        self.counter += 1;
        let fate = self.fates[self.counter as usize % self.fates.len()];
        let away = |relay: RelayIndex| cut.get(relay.as_usize()).copied().unwrap_or(false);
        if fate >= 224 || away(from) || away(to) {
            return;
        }
        let at = self.now + (1 + u32::from(fate) * 9 / 10) * MS;
        self.network.insert((at, self.counter), (from, to, what));
    }

    fn home(
        &mut self,
        home: RelayIndex,
        cut: &[bool; 3],
        act: impl FnOnce(&mut Home, &mut Vec<HomeAction>),
    ) {
        let mut actions = Vec::new();
        act(self.homes.get_mut(&home).expect("a home"), &mut actions);
        for action in actions {
            match action {
                HomeAction::Announced { to, id } => self.say(home, to, cut, Said::Announced { id }),
                HomeAction::Changed {
                    to,
                    id,
                    relays,
                    version,
                    ..
                } => {
                    let changed = Said::Changed {
                        id,
                        relays,
                        version,
                    };
                    self.say(home, to, cut, changed);
                }
            }
        }
    }

    fn announce(&mut self, edge: RelayIndex, cut: &[bool; 3]) {
        for home in HOMES {
            self.counter += 1;
            let id = self.counter;
            let now = self.now;
            self.edges
                .get_mut(&edge)
                .expect("an edge")
                .told
                .insert(id, now);
            self.say(edge, home, cut, Said::Announce { id });
        }
    }

    /// Lets a millisecond pass.
    fn tick(&mut self, cut: &[bool; 3]) {
        self.now += MS;
        let now = self.now;
        while let Some(entry) = self.network.first_entry()
            && entry.key().0 <= now
        {
            let (from, to, what) = entry.remove();
            self.hear(from, to, what, cut);
        }
        for home in HOMES {
            if self.homes[&home].next_due().is_some_and(|due| due <= now) {
                self.home(home, cut, |home, actions| home.tick(now, actions));
            }
        }
        let mut asks = Vec::new();
        let counter = &mut self.counter;
        for (&relay, edge) in &mut self.edges {
            let next = || {
                *counter += 1;
                *counter
            };
            let due = edge.cache.due(next, now).into_iter();
            asks.extend(due.map(|(home, id)| (relay, home, id)));
            edge.cache.update(&NETWORK, now);
        }
        for (edge, home, id) in asks {
            self.say(edge, home, cut, Said::Lookup { id });
        }
    }

    fn hear(&mut self, from: RelayIndex, to: RelayIndex, what: Said, cut: &[bool; 3]) {
        let now = self.now;
        match what {
            Said::Announce { id } => self.home(to, cut, |home, actions| {
                home.announce(from, id, vec![group()], LEASE, now, actions);
            }),
            Said::Withdraw { id } => self.home(to, cut, |home, actions| {
                home.withdraw(from, id, &group(), now, actions);
            }),
            Said::Confirmed { id } => {
                self.home(to, cut, |home, actions| {
                    home.confirmed(from, id, now, actions);
                });
            }
            Said::Lookup { id } => {
                let mut found = None;
                self.home(to, cut, |home, _| found = home.look_up(from, group(), now));
                let (relays, version) = found.expect("there is room");
                let answer = Said::Answer {
                    id,
                    relays,
                    version,
                };
                self.say(to, from, cut, answer);
            }
            Said::Announced { id } => {
                let edge = self.edges.get_mut(&to).expect("an edge");
                if let Some(told_at) = edge.told.remove(&id) {
                    edge.announced.confirm(from, told_at);
                }
            }
            Said::Answer {
                id,
                relays,
                version,
            } => {
                let edge = self.edges.get_mut(&to).expect("an edge");
                edge.cache.answer(from, id, relays, version, false);
                edge.cache.update(&NETWORK, now);
            }
            Said::Changed {
                id,
                relays,
                version,
            } => {
                let edge = self.edges.get_mut(&to).expect("an edge");
                edge.cache.changed(from, relays, version, now);
                edge.cache.update(&NETWORK, now);
                self.say(to, from, cut, Said::Confirmed { id });
            }
        }
    }

    /// Every edge whose join has returned is in every certain set.
    fn check(&self) {
        for (relay, edge) in self.edges.iter().filter(|(_, edge)| edge.member) {
            if !edge.announced.holds(self.now) {
                continue;
            }
            for (sender, other) in self.edges.iter().filter(|(sender, _)| *sender != relay) {
                assert!(
                    !other.cache.is_certain(self.now) || other.cache.relays().contains(*relay),
                    "{sender} is certain of {:?} while members at {relay} have joined",
                    other.cache.relays()
                );
            }
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..2_u8).prop_map(Step::Join),
        1 => (0..2_u8).prop_map(Step::Leave),
        1 => (0..4_u8).prop_map(Step::Send),
        1 => ((0..3_u8), any::<bool>()).prop_map(|(home, cut)| Step::Cut(home, cut)),
        4 => (1..1_500_u16).prop_map(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whoever_has_joined_is_in_every_set_that_is_certain(
        steps in prop::collection::vec(step(), 1..40),
        fates in prop::collection::vec(any::<u8>(), 200),
    ) {
        let mut world = World::new(fates);
        let mut cut = [false; 3];
        for step in steps {
            let edge = |n: u8| RelayIndex(10 + u16::from(n));
            let mut wait = 1;
            match step {
                Step::Join(n) => {
                    let edge = edge(n);
                    let state = world.edges.get_mut(&edge).expect("an edge");
                    state.member = true;
                    state.announced.set_homes(HOMES.to_vec());
                    world.announce(edge, &cut);
                }
                Step::Leave(n) => {
                    let edge = edge(n);
                    let state = world.edges.get_mut(&edge).expect("an edge");
                    state.member = false;
                    state.announced = Announced::default();
                    state.told.clear();
                    for home in HOMES {
                        world.counter += 1;
                        let id = world.counter;
                        world.say(edge, home, &cut, Said::Withdraw { id });
                    }
                }
                Step::Send(n) => {
                    let now = world.now;
                    let state = world.edges.get_mut(&edge(n)).expect("an edge");
                    state.cache = RelayCache::new(HOMES.to_vec(), now);
                }
                Step::Cut(home, away) => cut[usize::from(home)] = away,
                Step::Wait(ms) => wait = ms,
            }
            for _ in 0..wait {
                world.tick(&cut);
                world.check();
            }
        }
    }
}

#[test]
fn where_everything_can_be_reached_joins_and_lookups_do_come_to_an_end() {
    let mut world = World::new(vec![10, 60, 120]);
    let cut = [false; 3];
    let edge = RelayIndex(10);
    let state = world.edges.get_mut(&edge).expect("an edge");
    state.member = true;
    state.announced.set_homes(HOMES.to_vec());
    world.announce(edge, &cut);
    for _ in 0..1_000 {
        world.tick(&cut);
        world.check();
    }
    assert!(world.edges[&edge].announced.holds(world.now));
    let sender = &world.edges[&RelayIndex(12)].cache;
    assert!(sender.is_certain(world.now) && sender.relays().contains(edge));
}
