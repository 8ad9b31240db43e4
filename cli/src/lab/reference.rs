//! What clients elsewhere than relays could have at best, by the matrix alone: what they measured is
//! compared with it.

use tradewind_routing::{BestPaths, RttMatrix};

use super::report::best_one_way;

/// Round trips in milliseconds between places of a matrix; infinite where there is no way. One way is
/// half of the cell from its beginning to its end.
pub(super) struct Reference<'a> {
    matrix: &'a RttMatrix,
    /// Places of the relays.
    relays: &'a [usize],
    /// The best ways between them, by their number.
    paths: BestPaths,
}

impl<'a> Reference<'a> {
    pub(super) fn new(matrix: &'a RttMatrix, relays: &'a [usize]) -> Self {
        Self {
            matrix,
            relays,
            paths: best_one_way(&matrix.select(relays)),
        }
    }

    /// Straight from one to the other.
    pub(super) fn direct(&self, a: usize, b: usize) -> f64 {
        self.leg(a, b) + self.leg(b, a)
    }

    /// Into and out of the network at the nearest relays, the best way between them.
    pub(super) fn nearest(&self, a: usize, b: usize) -> f64 {
        self.nearest_one_way(a, b) + self.nearest_one_way(b, a)
    }

    /// Any two relays and any way between them, without a cost per hop.
    pub(super) fn joint(&self, a: usize, b: usize) -> f64 {
        self.joint_one_way(a, b) + self.joint_one_way(b, a)
    }

    /// The place where one server is best for these pairs, and the sum over them.
    pub(super) fn central(&self, pairs: &[(usize, usize)]) -> (usize, f64) {
        let over = |a, place, b| self.direct(a, place) + self.direct(place, b);
        let sum = |place| pairs.iter().map(|&(a, b)| over(a, place, b)).sum::<f64>();
        let sums = (0..self.matrix.len()).map(|place| (place, sum(place)));
        sums.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((0, 0.0))
    }

    fn leg(&self, from: usize, to: usize) -> f64 {
        match from == to {
            true => 0.0,
            false => self
                .matrix
                .cell(from, to)
                .map_or(f64::INFINITY, |rtt| rtt / 2.0),
        }
    }

    /// In at the `entry`th relay and out at the `exit`th one.
    fn over(&self, from: usize, entry: usize, exit: usize, to: usize) -> f64 {
        self.leg(from, self.relays[entry])
            + self.paths.cost(entry, exit)
            + self.leg(self.relays[exit], to)
    }

    fn joint_one_way(&self, from: usize, to: usize) -> f64 {
        let relays = 0..self.relays.len();
        let ends = relays
            .clone()
            .flat_map(|entry| relays.clone().map(move |exit| (entry, exit)));
        ends.map(|(entry, exit)| self.over(from, entry, exit, to))
            .fold(f64::INFINITY, f64::min)
    }

    fn nearest_one_way(&self, from: usize, to: usize) -> f64 {
        match (self.nearest_to(from), self.nearest_to(to)) {
            (Some(entry), Some(exit)) => self.over(from, entry, exit, to),
            _ => f64::INFINITY,
        }
    }

    /// The number of the relay with the shortest round trip.
    fn nearest_to(&self, place: usize) -> Option<usize> {
        let round = |&nth: &usize| self.direct(place, self.relays[nth]);
        (0..self.relays.len()).min_by(|a, b| round(a).total_cmp(&round(b)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: usize = 0;
    const R: usize = 1;
    const S: usize = 2;
    const B: usize = 3;
    const RELAYS: [usize; 2] = [R, S];

    /// Round trips from A to S are `a_s`; all others are as below. One way is half of each.
    fn matrix(a_s: &str) -> RttMatrix {
        let text = format!(
            "rtt,a,r,s,b\n\
             a,0,10,{a_s},200\n\
             r,14,0,80,100\n\
             s,{a_s},60,0,24\n\
             b,220,90,20,0\n"
        );
        RttMatrix::parse(&text).unwrap()
    }

    #[test]
    fn sums_are_those_worked_out_by_hand() {
        let matrix = matrix("50");
        let reference = Reference::new(&matrix, &RELAYS);
        // 100 there, 110 back.
        assert_eq!(reference.direct(A, B), 210.0);
        // a is nearest to r (12 around), b to s (22 around): 5 + 40 + 12 there, 10 + 30 + 7 back.
        assert_eq!(reference.nearest(A, B), 104.0);
        assert_eq!(reference.nearest(B, A), 104.0);
        // Over s alone: 25 + 12 there, 10 + 25 back. Over r alone: 5 + 50 there, 45 + 7 back.
        assert_eq!(reference.joint(A, B), 72.0);
        // One server: at a 0 + 210, at r 12 + 95, at s 50 + 22, at b 210 + 0; for both pairs.
        assert_eq!(reference.central(&[(A, B), (B, A)]), (S, 144.0));
    }

    #[test]
    fn each_direction_takes_its_own_best_way() {
        let text = "rtt,a,r,s,b\na,0,10,96,200\nr,14,0,80,100\ns,20,60,0,24\nb,220,90,20,0\n";
        let matrix = RttMatrix::parse(text).unwrap();
        let reference = Reference::new(&matrix, &RELAYS);
        // There over r 5 + 50 or r and s 5 + 40 + 12, against 48 + 12 over s; back 10 + 10.
        assert_eq!(reference.joint(A, B), 55.0 + 20.0);
        // A client in a relay's place has no leg.
        assert_eq!(Reference::new(&matrix, &[R]).joint(A, R), 12.0);
    }

    #[test]
    fn legs_that_are_not_known_are_no_ways() {
        let matrix = matrix("");
        let reference = Reference::new(&matrix, &RELAYS);
        // Over r alone: 5 + 50 there; back 10 + 30 + 7 over s and r.
        assert_eq!(reference.joint(A, B), 55.0 + 47.0);
        assert_eq!(reference.central(&[(A, B)]).0, R);
        assert_eq!(Reference::new(&matrix, &[S]).joint(A, B), f64::INFINITY);
    }
}
