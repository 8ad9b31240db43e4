//! What of the input is believed: when there is enough of it for a first plan, and when so much
//! has vanished that the measurement is broken rather than the world.

use std::time::Duration;

use super::{PlannerConfig, PlannerInput};
use crate::cost::CostMatrix;

/// How much of the network has been measured before the first plan.
#[derive(Debug, Clone, Default)]
pub(super) struct Coverage {
    first_at: Option<Duration>,
    grown_at: Duration,
    links: usize,
}

impl Coverage {
    /// Whether it is time for the first plan; what to say then.
    pub(super) fn suffices(
        &mut self,
        config: &PlannerConfig,
        input: &PlannerInput<'_>,
        cost: &CostMatrix,
    ) -> Option<String> {
        let links = cost.link_count();
        if links == 0 {
            return None;
        }
        if links != self.links {
            self.links = links;
            self.grown_at = input.now;
        }
        let first_at = *self.first_at.get_or_insert(input.now);
        let live = input.live.iter().filter(|&&live| live).count();
        let all_here = live >= input.expected_live;
        let complete = all_here && links == live * (live - 1);
        let settled = all_here && input.now >= self.grown_at + config.settle;
        let late = input.now >= first_at + config.first_plan_within;
        (complete || settled || late).then(|| {
            format!(
                "first plan: {live} relays, {links} of {} links measured",
                live * (live - 1)
            )
        })
    }
}

/// What was there some seconds ago: absurd input is recognised by comparison.
#[derive(Debug, Clone, Default)]
pub(super) struct Belief {
    baseline: Option<Baseline>,
    absurd_since: Option<Duration>,
}

#[derive(Debug, Clone)]
struct Baseline {
    at: Duration,
    live: Vec<bool>,
    /// Per link whether it was up, row-major.
    up: Vec<bool>,
}

impl Belief {
    /// Why this input is not believed yet, if so. `cost` is infinite for links of relays that are
    /// not live.
    pub(super) fn doubt(
        &mut self,
        grace: Duration,
        now: Duration,
        live: &[bool],
        cost: &CostMatrix,
    ) -> Option<String> {
        let baseline = self
            .baseline
            .get_or_insert_with(|| Baseline::new(now, live, cost));
        let Some(what) = baseline.what_vanished(live, cost) else {
            self.absurd_since = None;
            if now >= baseline.at + grace {
                *baseline = Baseline::new(now, live, cost);
            }
            return None;
        };
        let since = *self.absurd_since.get_or_insert(now);
        if now < since + grace {
            return Some(format!(
                "{what} vanished within {grace:?}: more likely a broken measurement than a broken \
                 network; keeping the plan for {grace:?}"
            ));
        }
        self.absurd_since = None;
        *baseline = Baseline::new(now, live, cost);
        None
    }
}

impl Baseline {
    fn new(at: Duration, live: &[bool], cost: &CostMatrix) -> Self {
        let n = cost.len();
        Self {
            at,
            live: live.to_vec(),
            up: (0..n)
                .flat_map(|from| (0..n).map(move |to| (from, to)))
                .map(|(from, to)| cost.is_up(from, to))
                .collect(),
        }
    }

    /// What has vanished, in words, when it is too much to be believed: half of the relays or
    /// more, or half of the links or more among the relays that remain. A relay that is gone from
    /// the list, or all of whose links are gone, is a dead relay, and does not count as many
    /// vanished links.
    fn what_vanished(&self, live: &[bool], cost: &CostMatrix) -> Option<String> {
        let n = self.live.len();
        let was_up = |from: usize, to: usize| self.up[from * n + to];
        let (mut before, mut dead) = (0, vec![false; n]);
        for relay in (0..n).filter(|&relay| self.live[relay]) {
            let mut links = (0..n)
                .flat_map(|other| [(relay, other), (other, relay)])
                .filter(|&(from, to)| was_up(from, to))
                .peekable();
            if links.peek().is_none() {
                continue; // it was as good as not there
            }
            before += 1;
            dead[relay] = !live[relay] || links.all(|(from, to)| !cost.is_up(from, to));
        }
        let gone = dead.iter().filter(|&&dead| dead).count();
        if gone > 0 && gone * 2 >= before {
            return Some(format!("{gone} of {before} relays"));
        }
        let (mut links, mut lost) = (0, 0);
        for from in (0..n).filter(|&from| !dead[from]) {
            for to in (0..n).filter(|&to| !dead[to] && was_up(from, to)) {
                links += 1;
                lost += usize::from(!cost.is_up(from, to));
            }
        }
        (lost > 0 && lost * 2 >= links).then(|| format!("{lost} of {links} links"))
    }
}
