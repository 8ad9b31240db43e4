//! Places, the links between them and the hosts at them.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, RwLockReadGuard, RwLockWriteGuard, atomic::Ordering::Relaxed},
    time::Duration,
};

use rustc_hash::FxHashMap;

use crate::{
    HostClock, LinkSpec, LinkStats, Wan, WanHost,
    host::HostNode,
    link::{Link, LinkState},
    sub_seed,
};

/// A place of one network: what links connect and hosts stand at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PlaceId(pub(crate) u32);

/// The map. Methods panic on a [`PlaceId`] of another network.
impl Wan {
    /// Adds a place, with a perfect link to itself and none to others. A name that exists already
    /// gives that place.
    pub fn add_place(&self, name: &str) -> PlaceId {
        let mut map = self.map_mut();
        if let Some(place) = map.by_name.get(name) {
            return *place;
        }
        let new = map.places.len();
        let link = |from: usize, to: usize| {
            let spec = (from == to).then(LinkSpec::default);
            Arc::new(Link::new(
                spec,
                sub_seed(self.core.seed, LINK_SEEDS, from as u64, to as u64),
            ))
        };
        for (from, row) in map.links.iter_mut().enumerate() {
            row.push(link(from, new));
        }
        map.links.push((0..=new).map(|to| link(new, to)).collect());
        let place = PlaceId(new as u32);
        map.places.push(name.to_owned());
        map.by_name.insert(name.to_owned(), place);
        place
    }

    /// Adds a place per name, in this order, with links between them whose one-way delay from the
    /// `i`-th to the `j`-th is `one_way(i, j)`: for a matrix of round trips half the cell in row
    /// `i`, column `j`. `None` is an unknown cell: no link. Links that exist are replaced; those
    /// of a place to itself are left alone.
    pub fn add_matrix(
        &self,
        names: &[String],
        one_way: impl Fn(usize, usize) -> Option<Duration>,
    ) -> Vec<PlaceId> {
        let places: Vec<_> = names.iter().map(|name| self.add_place(name)).collect();
        let map = self.map();
        for (i, &from) in places.iter().enumerate() {
            for (j, &to) in places.iter().enumerate() {
                if from != to {
                    map.link(from, to).state().spec = one_way(i, j).map(LinkSpec::with_delay);
                }
            }
        }
        places
    }

    /// The place of this name.
    #[must_use]
    pub fn place(&self, name: &str) -> Option<PlaceId> {
        self.map().by_name.get(name).copied()
    }

    /// The name of a place.
    #[must_use]
    pub fn place_name(&self, place: PlaceId) -> String {
        self.map().places[place.0 as usize].clone()
    }

    /// All places, in the order in which they were added.
    #[must_use]
    pub fn places(&self) -> Vec<PlaceId> {
        (0..self.map().places.len() as u32).map(PlaceId).collect()
    }

    /// Adds a host at a place, with one IPv4 address in 10.0.0.0/8 and one IPv6 address in
    /// fd00::/64 of its own.
    pub fn add_host(&self, place: PlaceId, clock: HostClock) -> Arc<WanHost> {
        let mut map = self.map_mut();
        assert!(
            (place.0 as usize) < map.places.len(),
            "the place is of another network"
        );
        let index = map.hosts as u32;
        map.hosts += 1;
        let seed = sub_seed(self.core.seed, HOST_SEEDS, u64::from(index), 0);
        let number = map.next_number();
        let node = Arc::new(HostNode::new(index, number, place, clock, seed));
        for ip in node.addresses() {
            map.by_ip.insert(ip, node.clone());
        }
        Arc::new(WanHost::new(self.core.clone(), node))
    }

    /// Takes a host to a place, which may be the one where it is, and gives it new addresses there,
    /// as when a phone leaves one network for another. Sockets bound to the unspecified address go
    /// on under the new one, the others neither send nor receive any more. Packets to the old
    /// addresses are lost: those under way as `no_socket`, later ones as to an unknown address.
    pub fn move_host(&self, host: &WanHost, place: PlaceId) {
        let mut map = self.map_mut();
        assert!(
            (place.0 as usize) < map.places.len(),
            "the place is of another network"
        );
        let node = host.node().clone();
        for ip in node.addresses() {
            map.by_ip.remove(&ip);
        }
        node.moved(place, map.next_number());
        for ip in node.addresses() {
            map.by_ip.insert(ip, node.clone());
        }
    }

    /// The host that has this address.
    #[must_use]
    pub fn host(&self, ip: IpAddr) -> Option<Arc<WanHost>> {
        let node = self.map().by_ip.get(&ip).cloned()?;
        Some(Arc::new(WanHost::new(self.core.clone(), node)))
    }

    /// What the link does now; `None` if there is none.
    #[must_use]
    pub fn link(&self, from: PlaceId, to: PlaceId) -> Option<LinkSpec> {
        self.with_link(from, to, |state| state.spec.clone())
    }

    /// Makes or replaces the directed link. A cut stays a cut.
    pub fn set_link(&self, from: PlaceId, to: PlaceId, spec: LinkSpec) {
        self.with_link(from, to, |state| state.spec = Some(spec));
    }

    /// Makes or replaces the links both ways.
    pub fn set_links(&self, a: PlaceId, b: PlaceId, spec: &LinkSpec) {
        self.set_link(a, b, spec.clone());
        self.set_link(b, a, spec.clone());
    }

    /// Removes the directed link.
    pub fn remove_link(&self, from: PlaceId, to: PlaceId) {
        self.with_link(from, to, |state| state.spec = None);
    }

    /// Cuts the directed link: packets sent from now on vanish; those under way still arrive.
    pub fn cut(&self, from: PlaceId, to: PlaceId) {
        self.with_link(from, to, |state| state.cut = true);
    }

    /// Ends a cut of the directed link.
    pub fn heal(&self, from: PlaceId, to: PlaceId) {
        self.with_link(from, to, |state| state.cut = false);
    }

    /// Cuts both ways.
    pub fn cut_both(&self, a: PlaceId, b: PlaceId) {
        self.cut(a, b);
        self.cut(b, a);
    }

    /// Ends cuts both ways.
    pub fn heal_both(&self, a: PlaceId, b: PlaceId) {
        self.heal(a, b);
        self.heal(b, a);
    }

    /// What happened on the directed link so far.
    #[must_use]
    pub fn link_stats(&self, from: PlaceId, to: PlaceId) -> LinkStats {
        self.map().link(from, to).stats()
    }

    /// What happened on all links so far, those of places to themselves included.
    #[must_use]
    pub fn total_stats(&self) -> LinkStats {
        let mut total = LinkStats::default();
        for link in self.map().links.iter().flatten() {
            total.add(&link.stats());
        }
        total
    }

    /// Packets sent to addresses that no host has; they are on no link's count.
    #[must_use]
    pub fn unknown_address(&self) -> u64 {
        self.core.unknown_address.load(Relaxed)
    }

    fn with_link<T>(&self, from: PlaceId, to: PlaceId, f: impl FnOnce(&mut LinkState) -> T) -> T {
        f(&mut self.map().link(from, to).state())
    }

    fn map(&self) -> RwLockReadGuard<'_, Topology> {
        self.core
            .topology
            .read()
            .expect("no code panics while it changes the map")
    }

    fn map_mut(&self) -> RwLockWriteGuard<'_, Topology> {
        self.core
            .topology
            .write()
            .expect("no code panics while it changes the map")
    }
}

const LINK_SEEDS: u64 = 1;
const HOST_SEEDS: u64 = 2;

#[derive(Debug, Default)]
pub(crate) struct Topology {
    places: Vec<String>,
    by_name: BTreeMap<String, PlaceId>,
    /// By sending, then by receiving place.
    links: Vec<Vec<Arc<Link>>>,
    hosts: usize,
    /// Addresses given so far, two to a number.
    numbers: u32,
    /// Point look-ups only.
    by_ip: FxHashMap<IpAddr, Arc<HostNode>>,
}

impl Topology {
    fn link(&self, from: PlaceId, to: PlaceId) -> &Arc<Link> {
        &self.links[from.0 as usize][to.0 as usize]
    }

    pub(crate) fn route(&self, from: &HostNode, to: IpAddr) -> Option<(Arc<Link>, Arc<HostNode>)> {
        let node = self.by_ip.get(&to)?;
        let link = self.link(from.place(), node.place());
        Some((link.clone(), node.clone()))
    }

    /// What the addresses of a host end in that had none before.
    fn next_number(&mut self) -> u32 {
        self.numbers += 1;
        self.numbers
    }
}

impl PlaceId {
    /// Of the observer, which is at no place.
    pub(crate) const NOWHERE: Self = Self(u32::MAX);
}
