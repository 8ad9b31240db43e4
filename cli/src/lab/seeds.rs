//! Random numbers of the lab: one seed, and generators of their own for everything that draws.

use rand::SeedableRng as _;
use tradewind_host::Rng;

pub(super) const PLACES: u64 = 1;
pub(super) const CLOCKS: u64 = 2;
pub(super) const TRAFFIC: u64 = 3;
pub(super) const STEADY: u64 = 4;
pub(super) const CHAOS: u64 = 5;
pub(super) const FAILURES: u64 = 6;
pub(super) const USERS: u64 = 7;
pub(super) const USER_FAULTS: u64 = 8;
pub(super) const GROUPS: u64 = 9;
pub(super) const FAR_CLIENTS: u64 = 10;

/// The generator of the `index`-th thing of a kind.
pub(super) fn rng(seed: u64, kind: u64, index: u64) -> Rng {
    let mut bytes = [0; 32];
    for (chunk, word) in bytes
        .chunks_exact_mut(8)
        .zip([seed, kind, index, 0x7472_6164_6577_696e])
    {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    Rng::from_seed(bytes)
}
