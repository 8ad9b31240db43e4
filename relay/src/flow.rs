//! The hash that a flow's plan and tree are drawn by at the ingress edge.

use tradewind_proto::Locator;

/// Added so that a flow of all zeros is hashed like any other (2⁶⁴ divided by the golden ratio).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The hash of a flow, 64 bits: the same for all packets of one sender with one flow id, so that a
/// flow keeps one plan and one tree.
///
/// `mix(mix(slot·2³² + generation) + GOLDEN + relay·2³² + flow)`, all modulo 2⁶⁴, where `mix` is the
/// finalizer of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
/// OOPSLA 2014). The lower 32 bits draw the plan, the upper 32 the tree: the two choices are
/// independent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FlowHash(u64);

impl FlowHash {
    pub(crate) fn new(sender: Locator, flow: u32) -> Self {
        let session = u64::from(sender.slot) << 32 | u64::from(sender.generation);
        let rest = u64::from(sender.relay.0) << 32 | u64::from(flow);
        Self(mix(mix(session).wrapping_add(GOLDEN).wrapping_add(rest)))
    }

    /// A number below `of`, evenly distributed: which plan.
    pub(crate) fn plan_draw(self, of: u32) -> u32 {
        draw(self.0 as u32, of)
    }

    /// A number below `of`, evenly distributed and independent of the plan's: which tree.
    pub(crate) fn tree_draw(self, of: u32) -> u32 {
        draw((self.0 >> 32) as u32, of)
    }

    /// A number below `of`, evenly distributed and independent of both: which message stream.
    pub(crate) fn stream_draw(self, of: u32) -> u32 {
        draw((mix(self.0.wrapping_add(GOLDEN)) >> 32) as u32, of)
    }
}

/// Scales 32 random bits to a range by multiplication (Lemire, "Fast random integer generation in an
/// interval", 2019; the bias is below `of`/2³²).
fn draw(bits: u32, of: u32) -> u32 {
    ((u64::from(bits) * u64::from(of)) >> 32) as u32
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use tradewind_proto::RelayIndex;

    use super::*;

    fn flow(relay: u16, slot: u32, flow: u32) -> FlowHash {
        let sender = Locator {
            relay: RelayIndex(relay),
            slot,
            generation: 0x1234_5678,
        };
        FlowHash::new(sender, flow)
    }

    #[test]
    fn the_hash_is_the_documented_one() {
        // Computed from the formula with integers of any size.
        assert_eq!(mix(1), 0x5692_161d_100b_05e5);
        assert_eq!(
            FlowHash::new(
                Locator {
                    relay: RelayIndex(3),
                    slot: 7,
                    generation: 0x1234_5678,
                },
                9
            ),
            FlowHash(0xae1c_273a_3bb2_5576)
        );
    }

    #[test]
    fn shares_of_flows_are_as_asked_for_and_the_two_draws_are_independent() {
        let count = 100_000;
        // Many sessions with few flows each, as real ones have.
        let hashes: Vec<FlowHash> = (0..count).map(|i| flow(2, 1 + i / 4, i % 4)).collect();
        let chosen: Vec<_> = hashes.iter().filter(|h| h.plan_draw(1_000) < 50).collect();
        let share = chosen.len() as f64 / f64::from(count);
        assert!((share - 0.05).abs() < 0.003, "{share}");
        // Among the flows of the small share the trees are drawn as among all.
        let first = chosen.iter().filter(|h| h.tree_draw(4) == 0).count();
        let first = first as f64 / chosen.len() as f64;
        assert!((first - 0.25).abs() < 0.03, "{first}");
    }
}
