//! Growing many trees over one matrix: the planner's hot room.
//!
//! Dijkstra's algorithm on a dense graph costs n² steps per tree whatever one does, for every
//! relay that is reached offers its row of links to all others. In networks that look like real
//! ones hardly any of these offers is taken: most ways are direct, and few relays ever shorten
//! another's way. So most of the work is to see that there is *nothing* to do, and that is done in
//! bulk:
//!
//! - A row's offers are compared with what is known in blocks of [`LANES`], in `f32`, which
//!   compilers turn into vector instructions. Costs are rounded down and known costs up, so that a
//!   block without a hit has certainly no offer that would be taken, ties included. Only blocks
//!   with a hit are looked at in `f64`; so the result is exactly that of the plain algorithm.
//! - The relay to go on from next is taken from the root's links, sorted once per matrix, merged
//!   with a heap of those few that something has improved.
//!
//! - Where a bound on each relay's cost is known beforehand (its cost in the present tree, or over
//!   a near root whose tree is known), offers above it are not looked at: they would be outbid
//!   before their relay is settled. A relay that ends above its bound shows that this was not so
//!   (the bound on links can make a tree dearer than it could be); then the tree is grown again
//!   without bounds.

use crate::{
    cost::CostMatrix,
    tree::{NONE, Tree, TreeRules},
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    time::Duration,
};

/// How many links are compared at once.
pub(crate) const LANES: usize = 16;

/// Relative room for rounding: four times the error of one `f32` operation.
const SLACK: f64 = 1.0 / (1u64 << 22) as f64;

/// Absolute room, so that 0 is strictly below 0.
const TINY: f64 = 1e-30;

/// The greatest lower bound used: anything dearer is rounded down to this, so that sums stay
/// numbers.
const DEAR: f32 = 1e37;

/// An `f32` that is certainly not above `cost`; infinite only for infinity.
pub(crate) fn rounded_down(cost: f64) -> f32 {
    if cost == f64::INFINITY {
        return f32::INFINITY;
    }
    ((cost * (1.0 - SLACK) - TINY).max(0.0) as f32).min(DEAR)
}

/// An `f32` that is certainly above `cost`.
pub(crate) fn rounded_up(cost: f64) -> f32 {
    (cost * (1.0 + SLACK) + TINY) as f32
}

/// Rows of links, rounded down, padded to whole blocks with links that are not there.
#[derive(Debug, Clone)]
pub(crate) struct LowRows {
    stride: usize,
    cells: Vec<f32>,
}

impl LowRows {
    pub(crate) fn new(matrix: &CostMatrix) -> Self {
        let n = matrix.len();
        let stride = n.next_multiple_of(LANES);
        let mut cells = vec![f32::INFINITY; stride * n];
        for row in 0..n {
            for (low, &cost) in cells[row * stride..].iter_mut().zip(matrix.row(row)) {
                *low = rounded_down(cost);
            }
        }
        Self { stride, cells }
    }

    pub(crate) fn set(&mut self, row: usize, column: usize, cost: f64) {
        self.cells[row * self.stride + column] = rounded_down(cost);
    }

    /// Calls `hit` with each column of `row` in which `base` plus the link may be below what `known`
    /// holds for that column. Padding in `known` must be below 0.
    #[inline]
    pub(crate) fn scan(
        &self,
        row: usize,
        base: f64,
        known: &mut [f32],
        mut hit: impl FnMut(usize, &mut f32),
    ) {
        let base = rounded_down(base);
        let (blocks, _) =
            self.cells[row * self.stride..(row + 1) * self.stride].as_chunks::<LANES>();
        let (known, _) = known.as_chunks_mut::<LANES>();
        for (number, (links, known)) in blocks.iter().zip(known).enumerate() {
            let mut any = 0u32;
            for lane in 0..LANES {
                any |= u32::from(base + links[lane] < known[lane]);
            }
            if any == 0 {
                continue;
            }
            for (lane, known) in known.iter_mut().enumerate() {
                if base + links[lane] < *known {
                    hit(number * LANES + lane, known);
                }
            }
        }
    }

    /// Columns with padding.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }
}

/// A matrix prepared for growing trees: `away.get(p, c)` is the cost of the link between a parent
/// `p` and its child `c`. For out-trees that is the cost matrix, for in-trees the cost matrix
/// turned round.
#[derive(Debug, Clone)]
pub(crate) struct Field {
    away: CostMatrix,
    low: LowRows,
    /// Per parent its children by (cost, index), then [`NONE`].
    order: Vec<u16>,
    /// Per child, how many parents it could have.
    parents: Vec<u32>,
}

/// What a tree is grown with, besides the costs.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wishes<'a> {
    /// A tree whose links look cheaper by so much.
    pub(crate) favoured: Option<(&'a Tree, f64)>,
    /// (child, parent) that are not to be taken, except where the favoured tree has them.
    pub(crate) barred: Option<&'a BTreeMap<(usize, usize), Duration>>,
    /// Children whose parent is given.
    pub(crate) forced: Option<&'a BTreeMap<usize, usize>>,
    /// What each relay will cost at most, all wishes included. No wish, but a hint that makes
    /// growing faster: when it is wrong it only takes longer.
    pub(crate) at_most: Option<&'a [f64]>,
}

impl Wishes<'_> {
    /// What a link counts as that costs `cost`.
    fn weigh(&self, parent: usize, child: usize, cost: f64) -> f64 {
        if let Some(&only) = self.forced.and_then(|forced| forced.get(&child))
            && only != parent
        {
            return f64::INFINITY;
        }
        if let Some((tree, favour)) = self.favoured
            && tree.parent(child) == Some(parent)
        {
            return (cost - favour).max(0.0);
        }
        match self.barred {
            Some(barred) if barred.contains_key(&(child, parent)) => f64::INFINITY,
            _ => cost,
        }
    }
}

/// A tree fresh from the field. Its `cost` is by what links counted as, wishes included.
pub(crate) struct Grown {
    pub(crate) tree: Tree,
    /// Some relays are out of reach by the cheapest ways within the bound and hang by the fewest
    /// links: costs of other links than the tree's own have had a say.
    pub(crate) rehung: bool,
}

impl Field {
    /// # Panics
    /// With 65,535 relays or more.
    pub(crate) fn new(away: CostMatrix) -> Self {
        let n = away.len();
        assert!(
            n < usize::from(NONE),
            "{n} relays are more than an index can name"
        );
        let mut field = Self {
            low: LowRows::new(&away),
            order: vec![NONE; n * n],
            parents: vec![0; n],
            away,
        };
        for parent in 0..n {
            field.sort(parent);
            for child in field.away.row(parent).iter().enumerate() {
                field.parents[child.0] += u32::from(child.1.is_finite() && child.0 != parent);
            }
        }
        field
    }

    pub(crate) fn len(&self) -> usize {
        self.away.len()
    }

    pub(crate) fn away(&self) -> &CostMatrix {
        &self.away
    }

    /// Takes in other costs of some links, as (parent, child, cost).
    pub(crate) fn update(&mut self, links: impl Iterator<Item = (usize, usize, f64)>) {
        let mut touched = vec![false; self.len()];
        for (parent, child, cost) in links {
            let before = self.away.get(parent, child).is_finite();
            self.away.set(parent, child, cost);
            let cost = self.away.get(parent, child);
            self.low.set(parent, child, cost);
            self.parents[child] += u32::from(cost.is_finite());
            self.parents[child] -= u32::from(before);
            touched[parent] = true;
        }
        for parent in (0..touched.len()).filter(|&parent| touched[parent]) {
            self.sort(parent);
        }
    }

    fn sort(&mut self, parent: usize) {
        let n = self.len();
        let row = self.away.row(parent);
        let mut children: Vec<(u64, u16)> = (0..n)
            .filter(|&child| child != parent && row[child].is_finite())
            .map(|child| (sort_key(row[child]), child as u16))
            .collect();
        children.sort_unstable();
        let order = &mut self.order[parent * n..(parent + 1) * n];
        order.fill(NONE);
        for (place, (_, child)) in order.iter_mut().zip(children) {
            *place = child;
        }
    }

    /// The tree from `root` in which every relay's way is as cheap as can be, not going on from
    /// relays that are already `max_links` away or may not be crossed. Among equals the fewer
    /// links win, then the parent that is nearer to the root, then the lower index.
    ///
    /// # Panics
    /// When `root` is out of range.
    pub(crate) fn grow(&self, root: usize, rules: &TreeRules, wishes: &Wishes<'_>) -> Grown {
        let n = self.len();
        assert!(root < n, "relay {root} outside of {n} relays");
        let mut young = Young::new(n, self.low.stride(), root);
        if let Some(bounds) = wishes.at_most {
            young.hint(bounds);
        }
        if rules.max_links > 0 {
            young.grow(self, rules, wishes);
        }
        if wishes.at_most.is_some_and(|bounds| young.is_above(bounds)) {
            let unhinted = Wishes {
                at_most: None,
                ..*wishes
            };
            return self.grow(root, rules, &unhinted);
        }
        let mut grown = Grown {
            tree: Tree::new(root, young.parent, young.cost),
            rehung: false,
        };
        if self.can_reach_more(&grown.tree, rules) {
            grown.tree = self.reach_the_unreached(&grown.tree, rules, wishes);
            grown.rehung = true;
        }
        grown
    }

    /// The trees of all roots, as [`Field::grow`] has them without wishes. Each gets its hint from
    /// the nearest root before it.
    pub(crate) fn grow_all(&self, rules: &TreeRules) -> Vec<Grown> {
        /// How far to look for one.
        const NEAR: usize = 32;
        let n = self.len();
        let mut all: Vec<Grown> = Vec::with_capacity(n);
        let mut bounds = vec![f64::INFINITY; n];
        for root in 0..n {
            let near = self.order[root * n..(root + 1) * n]
                .iter()
                .take(NEAR)
                .take_while(|&&child| child != NONE)
                .map(|&child| usize::from(child))
                .find(|&child| child < root && rules.may_cross(child));
            if let Some(near) = near {
                let first = self.away.get(root, near);
                for (bound, onwards) in bounds.iter_mut().zip(all[near].tree.cost.iter()) {
                    *bound = first + onwards;
                }
            }
            let wishes = Wishes {
                at_most: near.map(|_| bounds.as_slice()),
                ..Wishes::default()
            };
            all.push(self.grow(root, rules, &wishes));
        }
        all
    }

    /// Whether some relay without a way is next to one that could lead on to it.
    fn can_reach_more(&self, tree: &Tree, rules: &TreeRules) -> bool {
        let leads_on = |parent: usize| {
            tree.cost[parent].is_finite() && (parent == tree.root || rules.may_cross(parent))
        };
        (0..self.len())
            .filter(|&lost| !tree.cost[lost].is_finite() && self.parents[lost] > 0)
            .any(|lost| (0..self.len()).any(|p| self.away.is_up(p, lost) && leads_on(p)))
    }

    /// In sparse networks the cheapest way to a relay can have so many links that nothing may be
    /// attached below it, which cuts off relays that a dearer but shorter way would reach. Hang
    /// those, and what lies between, by the fewest links: their depths only become smaller, and
    /// links by breadth-first distance cannot close a circle.
    fn reach_the_unreached(&self, tree: &Tree, rules: &TreeRules, wishes: &Wishes<'_>) -> Tree {
        let fewest = self.fewest_links(tree.root, rules, wishes);
        let mut parent = tree.parents().to_vec();
        for lost in 0..self.len() {
            if tree.cost[lost].is_finite() || fewest[lost] == NONE {
                continue;
            }
            let mut at = lost;
            while at != tree.root {
                parent[at] = fewest[at];
                at = usize::from(fewest[at]);
            }
        }
        Tree::from_parents(tree.root, parent, &self.away)
    }

    /// Per relay its parent on a way of the fewest links from the root, within the rules.
    fn fewest_links(&self, root: usize, rules: &TreeRules, wishes: &Wishes<'_>) -> Vec<u16> {
        let n = self.len();
        let mut parent = vec![NONE; n];
        let mut level = vec![root];
        let mut reached = vec![false; n];
        reached[root] = true;
        for _ in 0..rules.max_links {
            let mut next = Vec::new();
            for child in (0..n).filter(|&child| !reached[child] && self.parents[child] > 0) {
                let nearest = level
                    .iter()
                    .filter(|&&p| p == root || rules.may_cross(p))
                    .map(|&p| (wishes.weigh(p, child, self.away.get(p, child)), p))
                    .filter(|(cost, _)| cost.is_finite())
                    .min_by(|a, b| a.0.total_cmp(&b.0));
                if let Some((_, p)) = nearest {
                    parent[child] = p as u16;
                    next.push(child);
                }
            }
            for &child in &next {
                reached[child] = true;
            }
            level = next;
        }
        parent
    }
}

/// Non-negative numbers in their order as integers.
fn sort_key(cost: f64) -> u64 {
    (cost + 0.0).to_bits()
}

/// A tree while it grows.
struct Young {
    root: usize,
    parent: Vec<u16>,
    cost: Vec<f64>,
    depth: Vec<u16>,
    /// `cost` rounded up; below anything once the relay is settled, and in the padding.
    high: Vec<f32>,
    /// Those that are not, or no longer, as the root's own links have it, by [`key`].
    improved: BinaryHeap<Reverse<u128>>,
}

const SETTLED: f32 = -1.0;

/// Relative room for sums made in another order.
const ORDER_SLACK: f64 = 1e-9;

impl Young {
    fn new(n: usize, stride: usize, root: usize) -> Self {
        let mut young = Self {
            root,
            parent: vec![NONE; n],
            cost: vec![f64::INFINITY; n],
            depth: vec![0; n],
            high: vec![f32::INFINITY; stride],
            improved: BinaryHeap::new(),
        };
        young.high[n..].fill(SETTLED);
        young.cost[root] = 0.0;
        young.high[root] = SETTLED;
        young
    }

    fn hint(&mut self, bounds: &[f64]) {
        for (high, bound) in self.high.iter_mut().zip(bounds) {
            *high = high.min(rounded_up(bound * (1.0 + ORDER_SLACK)));
        }
    }

    /// Whether some relay costs more than it was said it would.
    fn is_above(&self, bounds: &[f64]) -> bool {
        let mut pairs = self.cost.iter().zip(bounds);
        pairs.any(|(cost, bound)| *cost > bound * (1.0 + ORDER_SLACK))
    }

    fn grow(&mut self, field: &Field, rules: &TreeRules, wishes: &Wishes<'_>) {
        let n = field.len();
        let root = self.root;
        let children = wishes.favoured.map(|(tree, _)| Children::of(tree));
        let biased = wishes.barred.is_some_and(|barred| !barred.is_empty())
            || wishes.forced.is_some()
            || wishes.favoured.is_some();
        let weigh = |parent: usize, child: usize, cost: f64| match biased {
            true => wishes.weigh(parent, child, cost),
            false => cost,
        };

        let firsts = &field.order[root * n..(root + 1) * n];
        let row = field.away.row(root);
        for &child in firsts.iter().take_while(|&&child| child != NONE) {
            let child = usize::from(child);
            let cost = weigh(root, child, row[child]);
            if cost.is_finite() {
                self.offer(child, cost, root, 1, cost != row[child]);
            }
        }
        let mut firsts = firsts
            .iter()
            .copied()
            .take_while(|&child| child != NONE)
            .peekable();
        loop {
            // The root's own links that nothing has improved …
            let as_first = |young: &Self, child: usize| {
                young.high[child] != SETTLED
                    && young.depth[child] == 1
                    && young.parent[child] == root as u16
                    && young.cost[child] == row[child]
            };
            while firsts
                .next_if(|&child| !as_first(self, usize::from(child)))
                .is_some()
            {}
            // … and the others.
            while let Some(&Reverse(entry)) = self.improved.peek() {
                let relay = entry as u16;
                let at = usize::from(relay);
                let current =
                    self.high[at] != SETTLED && key(self.cost[at], self.depth[at], relay) == entry;
                if current {
                    break;
                }
                self.improved.pop();
            }
            let first = firsts
                .peek()
                .map(|&child| key(row[usize::from(child)], 1, child));
            let improved = self.improved.peek().map(|entry| entry.0);
            let Some(next) = first.into_iter().chain(improved).min() else {
                return;
            };
            let at = next as u16;
            self.settle(usize::from(at), field, rules, weigh, children.as_ref());
        }
    }

    fn settle(
        &mut self,
        at: usize,
        field: &Field,
        rules: &TreeRules,
        weigh: impl Fn(usize, usize, f64) -> f64,
        favoured: Option<&Children>,
    ) {
        self.high[at] = SETTLED;
        if !rules.may_cross(at) || usize::from(self.depth[at]) >= rules.max_links {
            return;
        }
        let (base, depth) = (self.cost[at], self.depth[at] + 1);
        let row = field.away.row(at);
        // Out of `self` while its blocks are gone through.
        let mut high = std::mem::take(&mut self.high);
        field.low.scan(at, base, &mut high, |child, high| {
            let total = base + weigh(at, child, row[child]);
            if self.takes(child, total, depth) {
                self.take(child, total, at, depth, true);
                *high = high.min(rounded_up(total));
            }
        });
        self.high = high;
        // A favoured link may be worth it where the row said it is not.
        for child in favoured
            .into_iter()
            .flat_map(|children| children.of_parent(at))
        {
            if self.high[child] != SETTLED {
                let total = base + weigh(at, child, row[child]);
                self.offer(child, total, at, depth, true);
            }
        }
    }

    fn takes(&self, child: usize, total: f64, depth: u16) -> bool {
        let known = self.cost[child];
        total < known || (total == known && total.is_finite() && depth < self.depth[child])
    }

    fn take(&mut self, child: usize, total: f64, parent: usize, depth: u16, heap: bool) {
        self.cost[child] = total;
        self.parent[child] = parent as u16;
        self.depth[child] = depth;
        if heap {
            self.improved.push(Reverse(key(total, depth, child as u16)));
        }
    }

    fn offer(&mut self, child: usize, total: f64, parent: usize, depth: u16, heap: bool) {
        if self.takes(child, total, depth) {
            self.take(child, total, parent, depth, heap);
            self.high[child] = self.high[child].min(rounded_up(total));
        }
    }
}

/// What relays are settled in the order of: cost, then depth, then index.
fn key(cost: f64, depth: u16, relay: u16) -> u128 {
    u128::from(sort_key(cost)) << 32 | u128::from(depth) << 16 | u128::from(relay)
}

/// The children of all relays of a tree.
struct Children {
    first: Vec<u16>,
    next: Vec<u16>,
}

impl Children {
    fn of(tree: &Tree) -> Self {
        let n = tree.len();
        let (mut first, mut next) = (vec![NONE; n], vec![NONE; n]);
        for child in (0..n).rev() {
            if let Some(parent) = tree.parent(child) {
                next[child] = first[parent];
                first[parent] = child as u16;
            }
        }
        Self { first, next }
    }

    fn of_parent(&self, parent: usize) -> impl Iterator<Item = usize> {
        let first = self.first[parent];
        std::iter::successors((first != NONE).then_some(first), |&child| {
            let next = self.next[usize::from(child)];
            (next != NONE).then_some(next)
        })
        .map(usize::from)
    }
}

#[cfg(test)]
mod tests;
