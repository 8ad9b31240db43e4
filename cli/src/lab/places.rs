//! The places of a lab: which of a matrix, how their relays are called, where they are.

use rand::RngExt as _;
use tradewind_routing::RttMatrix;
use tradewind_trust::check_relay_name;

use super::seeds;

/// One place with its relay and its client.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Place {
    /// The relay's name: the place's own wherever a relay may be called so.
    pub(crate) relay: String,
    /// The client's user.
    pub(crate) user: String,
    /// Degrees; both 0 when not known.
    pub(crate) latitude: f64,
    pub(crate) longitude: f64,
}

/// Names and coordinates for the places of a matrix. `coordinates` is CSV: name, latitude,
/// longitude and more, with a header.
pub(crate) fn places(matrix: &RttMatrix, coordinates: &str) -> Vec<Place> {
    let at = |name: &str| {
        coordinates.lines().skip(1).find_map(|line| {
            let mut cells = line.split(',');
            if cells.next()? != name {
                return None;
            }
            Some((cells.next()?.parse().ok()?, cells.next()?.parse().ok()?))
        })
    };
    let names = matrix.names().iter().enumerate();
    names
        .map(|(index, name)| {
            let (latitude, longitude) = at(name).unwrap_or_default();
            let relay = match check_relay_name(name) {
                Ok(()) => name.clone(),
                Err(_) => format!("place-{index}"),
            };
            Place {
                relay,
                user: format!("client-{index}"),
                latitude,
                longitude,
            }
        })
        .collect()
}

/// Chooses places far apart from each other: the first by the seed, then always the one that is
/// farthest from its nearest among those chosen (Gonzalez 1985). Unknown cells count as 0, so that
/// places that are cut off come last. In the order of the matrix.
pub(crate) fn spread(matrix: &RttMatrix, count: usize, seed: u64) -> Vec<usize> {
    let n = matrix.len();
    if count == 0 {
        return Vec::new();
    }
    let rtt = |i, j| matrix.direct_rtt(i, j).unwrap_or(0.0);
    let mut chosen = vec![seeds::rng(seed, seeds::PLACES, 0).random_range(0..n)];
    let mut nearest: Vec<f64> = (0..n).map(|place| rtt(place, chosen[0])).collect();
    while chosen.len() < count.min(n) {
        let next = (0..n)
            .filter(|place| !chosen.contains(place))
            .max_by(|&a, &b| nearest[a].total_cmp(&nearest[b]).then(b.cmp(&a)))
            .expect("fewer are chosen than there are");
        chosen.push(next);
        for (place, least) in nearest.iter_mut().enumerate() {
            *least = least.min(rtt(place, next));
        }
    }
    chosen.sort_unstable();
    chosen
}

/// The place from which all others are nearest in sum.
pub(crate) fn most_central(matrix: &RttMatrix) -> usize {
    let n = matrix.len();
    // An unknown cell weighs more than any known one: messages must get there.
    let sum = |i: usize| -> f64 { (0..n).map(|j| matrix.direct_rtt(i, j).unwrap_or(1e6)).sum() };
    (0..n)
        .min_by(|&a, &b| sum(a).total_cmp(&sum(b)))
        .expect("a matrix has places")
}

/// Two places without any way between them, if there are such. Only links that work in both
/// directions count: relays talk over no others.
pub(crate) fn unconnected(matrix: &RttMatrix) -> Option<(usize, usize)> {
    let mut reached = vec![false; matrix.len()];
    let mut next = vec![0];
    while let Some(place) = next.pop() {
        if !std::mem::replace(&mut reached[place], true) {
            next.extend((0..matrix.len()).filter(|&to| matrix.direct_rtt(place, to).is_some()));
        }
    }
    let to = reached.iter().position(|reached| !reached)?;
    Some((0, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three clusters on a line, at 0, 100 and 300 ms.
    fn clusters() -> RttMatrix {
        let at: [f64; 7] = [0.0, 1.0, 2.0, 100.0, 101.0, 300.0, 301.0];
        let names: Vec<String> = (0..at.len()).map(|i| format!("p{i}")).collect();
        let mut text = format!("x,{}\n", names.join(","));
        for (i, name) in names.iter().enumerate() {
            let row: Vec<String> = at.iter().map(|b| (b - at[i]).abs().to_string()).collect();
            text += &format!("{name},{}\n", row.join(","));
        }
        RttMatrix::parse(&text).unwrap()
    }

    #[test]
    fn spread_places_come_from_all_clusters_whatever_the_seed() {
        for seed in 0..10 {
            let chosen = spread(&clusters(), 3, seed);
            let cluster = |place: &usize| [0, 0, 0, 1, 1, 2, 2][*place];
            let clusters: Vec<i32> = chosen.iter().map(cluster).collect();
            assert_eq!(clusters, [0, 1, 2], "{chosen:?}");
        }
        assert_eq!(spread(&clusters(), 7, 3), [0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn the_centre_is_nearest_to_all() {
        assert_eq!(most_central(&clusters()), 3);
    }

    #[test]
    fn a_place_that_no_relay_can_be_called_gets_another_name() {
        let long = "x".repeat(70);
        let matrix = RttMatrix::parse(&format!("m,{long},b\n{long},0,1\nb,1,0\n")).unwrap();
        let places = places(&matrix, "name,latitude,longitude\nb,1.5,-2\n");
        assert_eq!(places[0].relay, "place-0");
        assert_eq!((places[1].relay.as_str(), places[1].latitude), ("b", 1.5));
    }
}
