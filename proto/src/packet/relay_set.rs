//! The set of relays a group packet still has to reach (the idea of BIER, RFC 8279).

use super::{HeaderError, need, u16_at};
use crate::RelayIndex;

/// Longest body of a set on the wire, in bytes: a bitmap over 1,024 relays.
pub const MAX_SET_BYTES: usize = 128;

const FORM_LIST: u8 = 0;
const FORM_BITMAP: u8 = 1;

/// A set of relays. On the wire a sorted list of indices or a bitmap, whichever is shorter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RelaySet {
    /// Sorted, without doubles.
    relays: Vec<RelayIndex>,
}

impl RelaySet {
    /// The relays in it, in ascending order.
    #[must_use]
    pub fn relays(&self) -> &[RelayIndex] {
        &self.relays
    }

    /// Whether nobody is left to reach.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.relays.is_empty()
    }

    /// Whether `relay` is in it.
    #[must_use]
    pub fn contains(&self, relay: RelayIndex) -> bool {
        self.relays.binary_search(&relay).is_ok()
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
        let relays: Vec<RelayIndex> = match bytes[0] {
            FORM_LIST => {
                if !length.is_multiple_of(2) {
                    return Err(HeaderError::Field("a relay list is cut short"));
                }
                (0..length / 2)
                    .map(|i| RelayIndex(u16_at(body, 2 * i)))
                    .collect()
            }
            FORM_BITMAP => (0..length * 8)
                .filter(|bit| body[bit / 8] & (0x80 >> (bit % 8)) != 0)
                .map(|bit| RelayIndex(bit as u16))
                .collect(),
            _ => return Err(HeaderError::Field("a relay set has an unknown form")),
        };
        if !relays.is_sorted_by(|a, b| a < b) || relays.last() == Some(&RelayIndex::NONE) {
            return Err(HeaderError::Field("a relay list is not sorted"));
        }
        Ok((Self { relays }, 2 + length))
    }

    /// Writes the shorter form to the end of `out`.
    ///
    /// # Errors
    /// When neither form fits [`MAX_SET_BYTES`]: split the set over several packets.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), HeaderError> {
        let list = self.relays.len() * 2;
        let bitmap = self
            .relays
            .last()
            .map_or(0, |last| usize::from(last.0) / 8 + 1);
        if list.min(bitmap) > MAX_SET_BYTES {
            return Err(HeaderError::Field("a relay set is too long"));
        }
        if list <= bitmap {
            out.extend_from_slice(&[FORM_LIST, list as u8]);
            for relay in &self.relays {
                out.extend_from_slice(&relay.0.to_be_bytes());
            }
        } else {
            out.extend_from_slice(&[FORM_BITMAP, bitmap as u8]);
            let start = out.len();
            out.resize(start + bitmap, 0);
            for relay in &self.relays {
                out[start + usize::from(relay.0) / 8] |= 0x80 >> (relay.0 % 8);
            }
        }
        Ok(())
    }
}

impl FromIterator<RelayIndex> for RelaySet {
    fn from_iter<I: IntoIterator<Item = RelayIndex>>(relays: I) -> Self {
        let mut relays: Vec<_> = relays
            .into_iter()
            .filter(|&relay| relay != RelayIndex::NONE)
            .collect();
        relays.sort_unstable();
        relays.dedup();
        Self { relays }
    }
}
