//! Something of every link, found at once: networks of a thousand relays have a million links.

use std::collections::BTreeMap;

use tradewind_proto::{RelayIndex, Uplink};

/// A value by an ordered pair of relays and an uplink. Nearly all links are over uplink 0: those
/// are rows of cells by the second relay, the others a map.
#[derive(Debug)]
pub(super) struct ByLink<T> {
    rows: Vec<Row<T>>,
}

#[derive(Debug)]
struct Row<T> {
    first: Vec<Option<T>>,
    further: BTreeMap<(RelayIndex, Uplink), T>,
}

const FIRST: Uplink = Uplink(0);

impl<T> Default for ByLink<T> {
    fn default() -> Self {
        Self { rows: Vec::new() }
    }
}

impl<T> Default for Row<T> {
    fn default() -> Self {
        Self {
            first: Vec::new(),
            further: BTreeMap::new(),
        }
    }
}

impl<T> ByLink<T> {
    pub(super) fn get(&self, a: RelayIndex, b: RelayIndex, uplink: Uplink) -> Option<&T> {
        let row = self.rows.get(a.as_usize())?;
        match uplink {
            FIRST => row.first.get(b.as_usize())?.as_ref(),
            _ => row.further.get(&(b, uplink)),
        }
    }

    pub(super) fn entry(
        &mut self,
        a: RelayIndex,
        b: RelayIndex,
        uplink: Uplink,
        new: impl FnOnce() -> T,
    ) -> &mut T {
        if self.rows.len() <= a.as_usize() {
            self.rows.resize_with(a.as_usize() + 1, Row::default);
        }
        let row = &mut self.rows[a.as_usize()];
        if uplink != FIRST {
            return row.further.entry((b, uplink)).or_insert_with(new);
        }
        if row.first.len() <= b.as_usize() {
            row.first.resize_with(b.as_usize() + 1, || None);
        }
        row.first[b.as_usize()].get_or_insert_with(new)
    }

    /// All of one first relay: those over uplink 0 first.
    pub(super) fn row(&self, a: RelayIndex) -> impl Iterator<Item = (RelayIndex, Uplink, &T)> {
        let row = self.rows.get(a.as_usize());
        row.into_iter().flat_map(|row| {
            let first = row.first.iter().enumerate();
            let first = first.filter_map(|(b, value)| Some((index(b), FIRST, value.as_ref()?)));
            let further = row.further.iter();
            first.chain(further.map(|(&(b, uplink), value)| (b, uplink, value)))
        })
    }

    /// All there is.
    pub(super) fn iter(&self) -> impl Iterator<Item = (RelayIndex, RelayIndex, Uplink, &T)> {
        (0..self.rows.len()).flat_map(|a| {
            let row = self.row(index(a));
            row.map(move |(b, uplink, value)| (index(a), b, uplink, value))
        })
    }

    pub(super) fn retain_in_row(
        &mut self,
        a: RelayIndex,
        mut keep: impl FnMut(RelayIndex, Uplink) -> bool,
    ) {
        let Some(row) = self.rows.get_mut(a.as_usize()) else {
            return;
        };
        for (b, value) in row.first.iter_mut().enumerate() {
            value.take_if(|_| !keep(index(b), FIRST));
        }
        row.further.retain(|&(b, uplink), _| keep(b, uplink));
    }

    /// All about one second relay.
    pub(super) fn column_mut(&mut self, b: RelayIndex) -> impl Iterator<Item = &mut T> {
        self.rows.iter_mut().flat_map(move |row| {
            let first = row.first.get_mut(b.as_usize()).and_then(Option::as_mut);
            let further = row.further.range_mut((b, Uplink(0))..=(b, Uplink(u8::MAX)));
            first.into_iter().chain(further.map(|(_, value)| value))
        })
    }
}

fn index(at: usize) -> RelayIndex {
    RelayIndex(at as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_over_any_uplink_are_found_kept_and_dropped_alike() {
        let mut links = ByLink::default();
        for (a, b, uplink) in [(2, 0, 0), (0, 2, 0), (0, 2, 7), (0, 1, 7)] {
            let value = 100 * a + 10 * b + u16::from(uplink);
            *links.entry(index(a.into()), index(b.into()), Uplink(uplink), || 0) = value;
        }
        assert_eq!(links.get(index(0), index(2), Uplink(7)), Some(&27));
        assert_eq!(links.get(index(0), index(2), Uplink(1)), None);
        assert_eq!(links.get(index(9), index(2), Uplink(0)), None);
        let all = |links: &ByLink<u16>| links.iter().map(|(.., &value)| value).collect::<Vec<_>>();
        assert_eq!(all(&links), [20, 17, 27, 200]);
        links.column_mut(index(2)).for_each(|value| *value += 1);
        links.retain_in_row(index(0), |b, uplink| (b, uplink) != (index(2), Uplink(0)));
        assert_eq!(all(&links), [17, 28, 200]);
    }
}
