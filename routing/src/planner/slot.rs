//! One tree and its history: what it could be changed to, and whether that is due.

use std::{collections::BTreeMap, time::Duration};

use super::PlannerConfig;
use crate::{
    grow::{Field, Grown, Wishes},
    tree::{Tree, TreeRules},
};

/// A link of other cost than before, in the sense of a [`Field`]: from parent to child.
#[derive(Debug, Clone, Copy)]
pub(super) struct Change {
    pub(super) parent: usize,
    pub(super) child: usize,
    pub(super) before: f64,
    pub(super) cost: f64,
}

/// One tree and its history.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) tree: Tree,
    /// Since when a clearly better tree has been there.
    better_since: Option<Duration>,
    /// (relay, hop) → when that hop last took part in a change of the relay's by choice.
    chosen: BTreeMap<(usize, usize), Duration>,
    /// What was found when it was last looked at, while that still holds.
    seen: Option<Seen>,
    /// The tree's costs are to be renewed before it is published.
    stale: bool,
}

/// The result of growing.
#[derive(Debug, Clone)]
struct Seen {
    /// The tree that was grown, with costs by what links counted as.
    grown: Tree,
    rehung: bool,
    candidate: Option<Candidate>,
}

/// What a slot could be changed to.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    tree: Tree,
    pub(super) verdict: Verdict,
    /// For the relay that gains most: the relay, its cost now and then.
    gain: Option<(usize, f64, f64)>,
    changed_relays: usize,
    /// Per relay, whether it has no way in the present tree, so that a change is no choice.
    forced: Vec<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    /// Not clearly better.
    Keep,
    /// Clearly better, or reaches relays that had no way before.
    Better,
    /// Gives a live relay a way that it has lost.
    Repairs,
}

impl Slot {
    pub(super) fn empty(root: usize, n: usize) -> Self {
        Self::new(Tree::empty(root, n), None)
    }

    /// One with the best tree there is, grown without wishes.
    pub(super) fn best(grown: Grown) -> Self {
        let seen = Seen {
            grown: grown.tree.clone(),
            rehung: grown.rehung,
            candidate: None,
        };
        Self::new(grown.tree, Some(seen))
    }

    fn new(tree: Tree, seen: Option<Seen>) -> Self {
        Self {
            tree,
            better_since: None,
            chosen: BTreeMap::new(),
            stale: seen.is_none(),
            seen,
        }
    }

    pub(super) fn make_room(&mut self, n: usize) {
        self.tree.make_room(n);
        self.forget();
    }

    /// Has it looked at afresh in the next step.
    pub(super) fn forget(&mut self) {
        self.seen = None;
    }

    /// Finds what may follow the present tree, unless that is known.
    ///
    /// It is known when nothing has changed that could have had a say. Growing a tree takes the
    /// cheapest offer for each relay; offers that were not taken leave no trace. So a link that is
    /// neither in the present nor in the grown tree has no say while its cost rises; nor while it
    /// falls, as long as its offer (the parent's cost in the grown tree, plus the link) is above
    /// what the child has. Ties count as a say. Only where relays had to be hung by the fewest
    /// links do others have one, so that any change counts.
    pub(super) fn look(
        &mut self,
        config: &PlannerConfig,
        now: Duration,
        field: &Field,
        rules: &TreeRules,
        changes: &[Change],
    ) {
        let rested = self.chosen.len();
        self.chosen.retain(|_, at| now < *at + config.choice_rest);
        if self.chosen.len() != rested || changes.iter().any(|change| self.concerns(change)) {
            self.seen = None;
        }
        if self.seen.is_some() {
            return;
        }
        self.stale = true;
        let now_costs = self.tree.costs_under(field.away(), Some(rules));
        // Hops chosen before are barred, except to relays that have no way.
        let barred: BTreeMap<(usize, usize), Duration> = self
            .chosen
            .iter()
            .filter(|((relay, _), _)| now_costs[*relay].is_finite())
            .map(|(&hop, &at)| (hop, at))
            .collect();
        // Present links look a little shorter, so that a tree does not change without gain: all
        // of a path's links together by the margin at most.
        let favour = config.margin_ms / rules.max_links.max(1) as f64;
        let wishes = Wishes {
            favoured: Some((&self.tree, favour)),
            barred: Some(&barred),
            forced: None,
            at_most: Some(&now_costs),
        };
        let grown = field.grow(self.tree.root, rules, &wishes);
        let then_costs = grown.tree.costs_under(field.away(), Some(rules));
        let candidate = self.judge(config, grown.tree.clone(), &now_costs, &then_costs);
        let keep = candidate.verdict == Verdict::Keep;
        self.seen = Some(Seen {
            grown: grown.tree,
            rehung: grown.rehung,
            candidate: (!keep).then_some(candidate),
        });
        match keep {
            true => self.better_since = None,
            false => {
                self.better_since.get_or_insert(now);
            }
        }
    }

    /// Whether a changed link has a say in what may follow.
    fn concerns(&self, change: &Change) -> bool {
        let Some(seen) = &self.seen else {
            return true;
        };
        let Change { parent, child, .. } = *change;
        if seen.rehung
            || self.tree.parent(child) == Some(parent)
            || seen.grown.parent(child) == Some(parent)
        {
            return true;
        }
        let base = seen.grown.cost[parent];
        change.cost < change.before
            && base.is_finite()
            && base + change.cost <= seen.grown.cost[child]
    }

    /// What may follow, when it is worth it.
    pub(super) fn candidate(&self) -> Option<&Candidate> {
        self.seen.as_ref()?.candidate.as_ref()
    }

    /// Whether a clearly better tree has been there for `hold`.
    pub(super) fn has_waited(&self, now: Duration, hold: Duration) -> bool {
        self.better_since.is_some_and(|since| now >= since + hold)
    }

    fn judge(
        &self,
        config: &PlannerConfig,
        tree: Tree,
        now_costs: &[f64],
        then_costs: &[f64],
    ) -> Candidate {
        let mut verdict = Verdict::Keep;
        let mut gain: Option<(usize, f64, f64)> = None;
        let (mut sum_now, mut sum_then) = (0.0, 0.0);
        for (relay, (&now, &then)) in now_costs.iter().zip(then_costs).enumerate() {
            if !then.is_finite() {
                continue;
            }
            if now.is_finite() {
                sum_now += now;
                sum_then += then;
                if now - then >= config.margin_ms.max(config.margin * now) {
                    verdict = verdict.max(Verdict::Better);
                }
            } else if self.tree.parent(relay).is_some() {
                verdict = Verdict::Repairs;
            } else {
                verdict = verdict.max(Verdict::Better);
            }
            if now > then && gain.is_none_or(|(_, known, new)| now - then > known - new) {
                gain = Some((relay, now, then));
            }
        }
        if sum_now - sum_then >= config.margin_ms.max(config.total_margin * sum_now) {
            verdict = verdict.max(Verdict::Better);
        }
        let changed_relays = (0..tree.len())
            .filter(|&relay| tree.parent(relay) != self.tree.parent(relay))
            .count();
        let forced = now_costs.iter().map(|cost| !cost.is_finite()).collect();
        Candidate {
            tree,
            verdict,
            gain,
            changed_relays,
            forced,
        }
    }

    /// Takes the candidate; changes by choice are remembered as of `now`.
    pub(super) fn accept(&mut self, now: Duration) {
        let Some(candidate) = self.seen.take().and_then(|seen| seen.candidate) else {
            return;
        };
        for relay in (0..self.tree.len()).filter(|&relay| !candidate.forced[relay]) {
            let (old, new) = (self.tree.parent(relay), candidate.tree.parent(relay));
            if let (Some(old), Some(new)) = (old, new)
                && old != new
            {
                self.chosen.insert((relay, old), now);
                self.chosen.insert((relay, new), now);
            }
        }
        self.tree = candidate.tree;
        self.better_since = None;
        self.stale = true;
    }

    /// Gives the tree its costs of now, for publication.
    pub(super) fn renew_costs(&mut self, field: &Field, rules: &TreeRules) {
        if std::mem::take(&mut self.stale) {
            self.tree.cost = self.tree.costs_under(field.away(), Some(rules)).into();
        }
    }
}

impl Candidate {
    /// What would change and why, in words. `way` says where packets go: "to", "from".
    pub(super) fn reason(&self, names: &[String], way: &str) -> String {
        let root = &names[self.tree.root];
        let changed = self.changed_relays;
        let Some((relay, now, then)) = self.gain else {
            return format!("{way} {root}: {changed} next hops changed");
        };
        let other = &names[relay];
        let via: Vec<&str> = self
            .tree
            .path_to_root(relay)
            .unwrap_or_default()
            .iter()
            .filter(|&&hop| hop != relay && hop != self.tree.root)
            .map(|&hop| names[hop].as_str())
            .collect();
        let over = if via.is_empty() {
            "directly".to_owned()
        } else {
            format!("via {}", via.join(", "))
        };
        let why = if now.is_finite() {
            format!("{then:.1} ms instead of {now:.1} ms")
        } else if self.verdict == Verdict::Repairs {
            format!("{then:.1} ms, the way before is gone")
        } else {
            format!("{then:.1} ms, no way before")
        };
        format!("{way} {root}: {other} {over} ({why}); {changed} next hops changed")
    }
}
