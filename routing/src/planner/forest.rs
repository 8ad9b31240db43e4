//! The trees of all roots over one matrix, each with its own history.

use std::time::Duration;

use super::{
    PlannerConfig,
    slot::{Change, Slot, Verdict},
};
use crate::{cost::CostMatrix, grow::Field, tree::TreeRules};

/// One tree per relay over one field.
#[derive(Debug, Clone)]
pub(super) struct Forest {
    field: Field,
    slots: Vec<Slot>,
    changes: Vec<Change>,
}

impl Forest {
    /// The best trees.
    pub(super) fn best(away: CostMatrix, rules: &TreeRules) -> Self {
        let field = Field::new(away);
        let slots = Self::grow(&field, rules);
        Self {
            field,
            slots,
            changes: Vec::new(),
        }
    }

    /// Only the field: nothing grows in it.
    pub(super) fn fallow(away: CostMatrix) -> Self {
        Self {
            field: Field::new(away),
            slots: Vec::new(),
            changes: Vec::new(),
        }
    }

    /// The best trees over a field for another rule set.
    pub(super) fn grow(field: &Field, rules: &TreeRules) -> Vec<Slot> {
        field.grow_all(rules).into_iter().map(Slot::best).collect()
    }

    pub(super) fn field(&self) -> &Field {
        &self.field
    }

    pub(super) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    pub(super) fn slots_mut(&mut self) -> &mut [Slot] {
        &mut self.slots
    }

    /// The links that [`Forest::follow`] has found changed.
    pub(super) fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Takes in the costs of now; whether any has changed. One that differs by no more than
    /// `quantum_ms` from what it was when it last changed has not: it cannot make a way of five
    /// links look better or worse than it is by more than five times that, far below any margin.
    pub(super) fn follow(&mut self, away: &CostMatrix, quantum_ms: f64) -> bool {
        let n = away.len();
        self.changes.clear();
        if n != self.field.len() {
            self.field = Field::new(away.clone());
            self.make_room(n);
            return true;
        }
        for parent in 0..n {
            let held = self.field.away().row(parent);
            for (child, (&before, &cost)) in held.iter().zip(away.row(parent)).enumerate() {
                // Infinities differ from numbers by infinity, and from each other by NaN.
                if (cost - before).abs() > quantum_ms {
                    self.changes.push(Change {
                        parent,
                        child,
                        before,
                        cost,
                    });
                }
            }
        }
        self.update();
        !self.changes.is_empty()
    }

    /// Takes in what another forest, over the same network turned round, has found changed.
    pub(super) fn follow_reversed(&mut self, other: &Self) {
        self.changes.clear();
        if self.field.len() != other.field.len() {
            self.field = Field::new(other.field.away().transposed());
            self.make_room(other.field.len());
            return;
        }
        self.changes
            .extend(other.changes.iter().map(|change| Change {
                parent: change.child,
                child: change.parent,
                ..*change
            }));
        self.update();
    }

    fn make_room(&mut self, n: usize) {
        if !self.slots.is_empty() {
            make_room(&mut self.slots, n);
        }
    }

    fn update(&mut self) {
        let links = self
            .changes
            .iter()
            .map(|change| (change.parent, change.child, change.cost));
        self.field.update(links);
    }

    /// Gives the trees their costs of now.
    pub(super) fn renew_costs(&mut self, rules: &TreeRules) {
        for slot in &mut self.slots {
            slot.renew_costs(&self.field, rules);
        }
    }

    /// Finds what may follow each tree.
    pub(super) fn look(
        &mut self,
        config: &PlannerConfig,
        now: Duration,
        live: &[bool],
        rules: &TreeRules,
    ) {
        look(
            &mut self.slots,
            config,
            now,
            live,
            (&self.field, rules),
            &self.changes,
        );
    }
}

pub(super) fn make_room(slots: &mut Vec<Slot>, n: usize) {
    for slot in slots.iter_mut() {
        slot.make_room(n);
    }
    slots.extend((slots.len()..n).map(|root| Slot::empty(root, n)));
}

/// Finds what may follow each of these trees. Those of relays that are not there wait.
pub(super) fn look(
    slots: &mut [Slot],
    config: &PlannerConfig,
    now: Duration,
    live: &[bool],
    (field, rules): (&Field, &TreeRules),
    changes: &[Change],
) {
    for slot in slots {
        match live[slot.tree.root] {
            true => slot.look(config, now, field, rules, changes),
            false => slot.forget(),
        }
    }
}

/// Whether a clearly better tree has waited long enough.
pub(super) fn any_due(slots: &[Slot], config: &PlannerConfig, now: Duration) -> bool {
    slots.iter().any(|slot| {
        slot.candidate()
            .is_some_and(|candidate| candidate.verdict == Verdict::Better)
            && slot.has_waited(now, config.hold)
    })
}

/// What is said of accepted trees, and how their history is kept.
pub(super) struct Acceptance<'a> {
    pub(super) config: &'a PlannerConfig,
    pub(super) now: Duration,
    pub(super) names: &'a [String],
    /// When one tree is due, those that are nearly due go along: fewer plans.
    pub(super) any_due: bool,
    pub(super) reasons: Vec<String>,
}

impl Acceptance<'_> {
    /// Takes the trees that are due. `way` is how they are spoken of.
    pub(super) fn take(&mut self, slots: &mut [Slot], way: &str) -> bool {
        let mut changed = false;
        for slot in slots {
            let Some(candidate) = slot.candidate() else {
                continue;
            };
            let due = match candidate.verdict {
                Verdict::Repairs => true,
                _ => self.any_due && slot.has_waited(self.now, self.config.hold / 3),
            };
            if due {
                self.reasons.push(candidate.reason(self.names, way));
                slot.accept(self.now);
                changed = true;
            }
        }
        changed
    }
}
