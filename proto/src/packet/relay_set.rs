//! The set of relays a group packet still has to reach (the idea of BIER, RFC 8279).

use std::fmt;

use super::{HeaderError, need, u16_at};
use crate::RelayIndex;

/// Longest body of a set on the wire, in bytes: a bitmap over 1,024 relays.
pub const MAX_SET_BYTES: usize = 128;
/// Longest set on the wire, in bytes: form, length, body.
pub const MAX_SET_LEN: usize = 2 + MAX_SET_BYTES;

const FORM_LIST: u8 = 0;
const FORM_BITMAP: u8 = 1;

/// Relays that a set holds without a heap allocation: most groups have members at no more.
const INLINE: usize = 12;

/// A set of relays. On the wire a sorted list of indices or a bitmap, whichever is shorter.
#[derive(Clone)]
pub struct RelaySet(Repr);

/// Sorted, without doubles.
#[derive(Clone)]
enum Repr {
    Inline(u8, [RelayIndex; INLINE]),
    Heap(Vec<RelayIndex>),
}

impl RelaySet {
    /// The empty set.
    pub const EMPTY: Self = Self(Repr::Inline(0, [RelayIndex::NONE; INLINE]));

    /// The relays in it, in ascending order.
    #[must_use]
    pub fn relays(&self) -> &[RelayIndex] {
        match &self.0 {
            Repr::Inline(count, relays) => &relays[..usize::from(*count)],
            Repr::Heap(relays) => relays,
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.relays().len()
    }

    /// Whether nobody is left to reach.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.relays().is_empty()
    }

    /// Whether `relay` is in it.
    #[must_use]
    pub fn contains(&self, relay: RelayIndex) -> bool {
        self.relays().binary_search(&relay).is_ok()
    }

    /// Adds a relay; `false` when it is in already. [`RelayIndex::NONE`] is no relay.
    pub fn insert(&mut self, relay: RelayIndex) -> bool {
        let Err(at) = self.relays().binary_search(&relay) else {
            return false;
        };
        if relay == RelayIndex::NONE {
            return false;
        }
        match &mut self.0 {
            Repr::Inline(count, relays) if usize::from(*count) < INLINE => {
                relays.copy_within(at..usize::from(*count), at + 1);
                relays[at] = relay;
                *count += 1;
            }
            Repr::Inline(_, relays) => {
                let mut all = relays.to_vec();
                all.insert(at, relay);
                self.0 = Repr::Heap(all);
            }
            Repr::Heap(relays) => relays.insert(at, relay),
        }
        true
    }

    /// Takes a relay out; `false` when it is not in.
    pub fn remove(&mut self, relay: RelayIndex) -> bool {
        let Ok(at) = self.relays().binary_search(&relay) else {
            return false;
        };
        match &mut self.0 {
            Repr::Inline(count, relays) => {
                relays.copy_within(at + 1..usize::from(*count), at);
                *count -= 1;
            }
            Repr::Heap(relays) => {
                relays.remove(at);
            }
        }
        true
    }

    /// Keeps those for which `keep` holds.
    pub fn retain(&mut self, mut keep: impl FnMut(RelayIndex) -> bool) {
        *self = self.iter().filter(|&relay| keep(relay)).collect();
    }

    /// The relays, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = RelayIndex> + '_ {
        self.relays().iter().copied()
    }

    /// Bytes that it has on the wire, form and length included; `None` when neither form fits
    /// [`MAX_SET_BYTES`].
    #[must_use]
    pub fn encoded_len(&self) -> Option<usize> {
        let body = self.list_len().min(self.bitmap_len());
        (body <= MAX_SET_BYTES).then_some(2 + body)
    }

    /// Cuts it into sets that fit into packets: itself, in nearly every case.
    pub fn parts(&self) -> impl Iterator<Item = Self> + '_ {
        let whole = self.encoded_len().is_some();
        let size = if whole {
            self.len().max(1)
        } else {
            MAX_SET_BYTES / 2
        };
        self.relays()
            .chunks(size)
            .map(|chunk| chunk.iter().copied().collect())
    }

    /// Reads a set; gives it and how many bytes it took.
    ///
    /// # Errors
    /// When it is cut short, of an unknown form, unsorted, or longer than [`MAX_SET_BYTES`].
    pub fn decode(bytes: &[u8]) -> Result<(Self, usize), HeaderError> {
        need(bytes, 2)?;
        let length = usize::from(bytes[1]);
        if length > MAX_SET_BYTES {
            return Err(HeaderError::Field("a relay set is too long"));
        }
        need(bytes, 2 + length)?;
        let body = &bytes[2..2 + length];
        let set: Self = match bytes[0] {
            FORM_LIST => {
                if !length.is_multiple_of(2) {
                    return Err(HeaderError::Field("a relay list is cut short"));
                }
                let at = |i: usize| RelayIndex(u16_at(body, 2 * i));
                let count = length / 2;
                let sorted = (1..count).all(|i| at(i - 1) < at(i));
                if !sorted || (count > 0 && at(count - 1) == RelayIndex::NONE) {
                    return Err(HeaderError::Field("a relay list is not sorted"));
                }
                Self::from_sorted(count, at)
            }
            FORM_BITMAP => (0..length * 8)
                .filter(|bit| body[bit / 8] & (0x80 >> (bit % 8)) != 0)
                .map(|bit| RelayIndex(bit as u16))
                .collect(),
            _ => return Err(HeaderError::Field("a relay set has an unknown form")),
        };
        Ok((set, 2 + length))
    }

    /// Writes the shorter form to the beginning of `out`; gives the bytes that it took.
    ///
    /// # Errors
    /// When neither form fits [`MAX_SET_BYTES`]: split the set over several packets
    /// ([`parts`](Self::parts)).
    ///
    /// # Panics
    /// When `out` is shorter than [`encoded_len`](Self::encoded_len).
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, HeaderError> {
        let length = self
            .encoded_len()
            .ok_or(HeaderError::Field("a relay set is too long"))?;
        let out = &mut out[..length];
        out[1] = (length - 2) as u8;
        if self.list_len() <= self.bitmap_len() {
            out[0] = FORM_LIST;
            for (i, relay) in self.iter().enumerate() {
                out[2 + 2 * i..4 + 2 * i].copy_from_slice(&relay.0.to_be_bytes());
            }
        } else {
            out[0] = FORM_BITMAP;
            out[2..].fill(0);
            for relay in self.iter() {
                out[2 + usize::from(relay.0) / 8] |= 0x80 >> (relay.0 % 8);
            }
        }
        Ok(length)
    }

    fn list_len(&self) -> usize {
        self.len() * 2
    }

    fn bitmap_len(&self) -> usize {
        self.relays()
            .last()
            .map_or(0, |last| usize::from(last.0) / 8 + 1)
    }

    /// Of `count` relays that `at` gives in ascending order.
    fn from_sorted(count: usize, at: impl Fn(usize) -> RelayIndex) -> Self {
        if count > INLINE {
            return Self(Repr::Heap((0..count).map(at).collect()));
        }
        let mut relays = [RelayIndex::NONE; INLINE];
        for (i, relay) in relays.iter_mut().take(count).enumerate() {
            *relay = at(i);
        }
        Self(Repr::Inline(count as u8, relays))
    }
}

impl Default for RelaySet {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl PartialEq for RelaySet {
    fn eq(&self, other: &Self) -> bool {
        self.relays() == other.relays()
    }
}

impl Eq for RelaySet {}

impl fmt::Debug for RelaySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.iter().map(|relay| relay.0))
            .finish()
    }
}

impl Extend<RelayIndex> for RelaySet {
    fn extend<I: IntoIterator<Item = RelayIndex>>(&mut self, relays: I) {
        for relay in relays {
            self.insert(relay);
        }
    }
}

impl FromIterator<RelayIndex> for RelaySet {
    fn from_iter<I: IntoIterator<Item = RelayIndex>>(relays: I) -> Self {
        let mut set = Self::EMPTY;
        set.extend(relays);
        set
    }
}
