//! Paths that the operator has pinned: which of them are honoured, and in which trees.

use std::{collections::BTreeMap, time::Duration};

use super::PlannerConfig;
use crate::{
    cost::CostMatrix,
    grow::{Field, Wishes},
    tree::{Tree, TreeRules},
};

/// The pins of one profile.
#[derive(Debug, Clone, Default)]
pub(super) struct Pins {
    history: BTreeMap<Vec<usize>, History>,
    /// By destination the trees that pins need.
    groups: BTreeMap<usize, Vec<Group>>,
    /// Pins that are not honoured, and why.
    refused: BTreeMap<Vec<usize>, String>,
}

/// Whether one pin could be used, and when.
#[derive(Debug, Clone, Copy, Default)]
struct History {
    used: bool,
    usable_since: Option<Duration>,
    returned_at: Option<Duration>,
}

/// Pins to one destination that fit into one tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Group {
    /// Next hops that are given.
    forced: BTreeMap<usize, usize>,
    pub(super) origins: Vec<usize>,
}

impl Pins {
    /// Decides which pins are honoured in at most `room` trees per destination; what has changed,
    /// in words. A pin that has lost a link is left at once; one that has found it again is
    /// honoured after the hold time, once a minute at most.
    pub(super) fn step(
        &mut self,
        config: &PlannerConfig,
        now: Duration,
        names: &[String],
        (cost, rules): (&CostMatrix, &TreeRules),
        pins: &[Vec<usize>],
        room: usize,
    ) -> Vec<String> {
        self.history.retain(|path, _| pins.contains(path));
        let mut groups: BTreeMap<usize, Vec<Group>> = BTreeMap::new();
        let mut refused = BTreeMap::new();
        for path in pins {
            let verdict = match objection(names, cost.len(), rules, path) {
                Some(objection) => Err(objection),
                None => self
                    .usable(config, now, names, cost, path)
                    .and_then(|()| fit(&mut groups, path, room)),
            };
            if let Err(why) = verdict {
                refused.insert(path.clone(), why);
            }
        }
        let mut reasons = Vec::new();
        for (path, why) in &refused {
            if self.refused.get(path) != Some(why) {
                reasons.push(format!("pin {} is not honoured: {why}", words(names, path)));
            }
        }
        for path in pins.iter().filter(|path| !refused.contains_key(*path)) {
            let known = self.groups.get(&path[path.len() - 1]);
            if known.is_none_or(|groups| groups.iter().all(|group| !group.holds(path))) {
                reasons.push(format!("pin {} is honoured", words(names, path)));
            }
        }
        if groups != self.groups && reasons.is_empty() {
            reasons.push("pins have been taken away".to_owned());
        }
        self.groups = groups;
        self.refused = refused;
        reasons
    }

    /// Whether a path that could be honoured is to be used now.
    fn usable(
        &mut self,
        config: &PlannerConfig,
        now: Duration,
        names: &[String],
        cost: &CostMatrix,
        path: &[usize],
    ) -> Result<(), String> {
        let broken = path.windows(2).find(|link| !cost.is_up(link[0], link[1]));
        let is_new = !self.history.contains_key(path);
        let history = self.history.entry(path.to_vec()).or_default();
        if let Some(link) = broken {
            history.used = false;
            history.usable_since = None;
            let (from, to) = (&names[link[0]], &names[link[1]]);
            return Err(format!(
                "there is no usable link from {from} to {to}; the best way is taken meanwhile"
            ));
        }
        let since = *history.usable_since.get_or_insert(now);
        let rested = history
            .returned_at
            .is_none_or(|at| now >= at + config.choice_rest);
        if !history.used && is_new {
            history.used = true;
        } else if !history.used && now >= since + config.hold && rested {
            history.used = true;
            history.returned_at = Some(now);
        }
        match history.used {
            true => Ok(()),
            false => Err("it was broken and is waited for".to_owned()),
        }
    }

    /// The pins that are not honoured, each with the reason.
    pub(super) fn refused(&self) -> impl Iterator<Item = (&[usize], &str)> {
        self.refused
            .iter()
            .map(|(path, why)| (path.as_slice(), why.as_str()))
    }

    /// By destination the trees of the pins, with the origins that are to use them.
    pub(super) fn trees(
        &self,
        field: &Field,
        rules: &TreeRules,
    ) -> impl Iterator<Item = (usize, Tree, &[usize])> {
        self.groups.iter().flat_map(move |(&to, groups)| {
            groups.iter().map(move |group| {
                let wishes = Wishes {
                    forced: Some(&group.forced),
                    ..Wishes::default()
                };
                let mut tree = field.grow(to, rules, &wishes).tree;
                tree.cost = tree.costs_under(field.away(), Some(rules)).into();
                (to, tree, group.origins.as_slice())
            })
        })
    }
}

impl Group {
    fn holds(&self, path: &[usize]) -> bool {
        self.origins.contains(&path[0])
            && path
                .windows(2)
                .all(|link| self.forced.get(&link[0]) == Some(&link[1]))
    }

    /// Whether no relay of the path already has another next hop.
    fn fits(&self, path: &[usize]) -> bool {
        path.windows(2)
            .all(|link| self.forced.get(&link[0]).is_none_or(|&hop| hop == link[1]))
    }

    fn add(&mut self, path: &[usize]) {
        self.forced
            .extend(path.windows(2).map(|link| (link[0], link[1])));
        self.origins.push(path[0]);
    }
}

/// Why a path can never be honoured, whatever the state of its links.
fn objection(names: &[String], n: usize, rules: &TreeRules, path: &[usize]) -> Option<String> {
    let links = path.len().saturating_sub(1);
    if links == 0 || links > rules.max_links {
        return Some(format!(
            "it has {links} links: from 1 to {} are possible",
            rules.max_links
        ));
    }
    if path.iter().any(|&relay| relay >= n) {
        return Some("it names a relay that is not known".to_owned());
    }
    let twice = (0..path.len()).find(|&place| path[..place].contains(&path[place]));
    if let Some(place) = twice {
        return Some(format!("it visits {} twice", names[path[place]]));
    }
    path[1..links]
        .iter()
        .find(|&&relay| !rules.may_cross(relay))
        .map(|&relay| format!("{} must not be crossed", names[relay]))
}

/// Finds a tree for the path.
fn fit(
    groups: &mut BTreeMap<usize, Vec<Group>>,
    path: &[usize],
    room: usize,
) -> Result<(), String> {
    let groups = groups.entry(path[path.len() - 1]).or_default();
    if groups.iter().any(|group| group.holds(path)) {
        return Ok(());
    }
    if groups.iter().any(|group| group.origins.contains(&path[0])) {
        return Err("another pin is for the same two relays".to_owned());
    }
    if let Some(group) = groups.iter_mut().find(|group| group.fits(path)) {
        group.add(path);
        return Ok(());
    }
    if groups.len() >= room {
        return Err(format!(
            "the pins to this destination need more than {room} trees: take one of them away"
        ));
    }
    let mut group = Group::default();
    group.add(path);
    groups.push(group);
    Ok(())
}

fn words(names: &[String], path: &[usize]) -> String {
    let name = |&relay: &usize| {
        names
            .get(relay)
            .cloned()
            .unwrap_or_else(|| format!("relay {relay}"))
    };
    path.iter().map(name).collect::<Vec<_>>().join(" > ")
}
